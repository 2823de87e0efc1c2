"""What an evaluation may consist of: one list of attacks and looks, in the order in which they run.

The recipe's type, the command's option, the order of running and that of reporting follow from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator

from fmoe.attacks.threat import Threat
from fmoe.evaluation import mixture_suite, standard, sweeps
from fmoe.evaluation.chunk import Chunk, Columns
from fmoe.evaluation.standard import Given

Run = Callable[[Any, Chunk, Columns, Threat], Given]
"""(model, chunk, what earlier stages found, threat model) to columns and flags."""

CLEAN, SUITE, SWEEPS = "clean", "mixture", "sweeps"
"""The stage that comes first, always; two groups."""


@dataclass(frozen=True)
class Attack:
    """A stage of the protocol by the name under which it is asked for and reported.

    run: what it does; of several parts, each is a stage of its own, and gives columns of the whole
    as far as it has come. group: a name that asks for all of the group. of_mixtures: skipped for
    other models. white_box: ascends the model's own gradient at the protocol's eps. fits: whether
    there is such an attack in a norm.
    """

    name: str
    run: Run | Mapping[str, Run]
    group: str | None = None
    of_mixtures: bool = False
    white_box: bool = False
    fits: Callable[[Threat], bool] = lambda _: True

    @property
    def stages(self) -> dict[str, Run]:
        """NAME, or NAME.PART each, to what it does."""
        if isinstance(self.run, Mapping):
            return {f"{self.name}.{part}": run for part, run in self.run.items()}
        return {self.name: self.run}


in_suite = partial(Attack, group=SUITE, of_mixtures=True)

ATTACKS: tuple[Attack, ...] = (
    Attack("fgsm", standard.fgsm, white_box=True),
    Attack("pgd", standard.pgd, white_box=True),
    Attack("pgd50", standard.pgd50, white_box=True),
    in_suite("gate-only", mixture_suite.gate_only),
    in_suite("frozen-gate", mixture_suite.frozen_gate),
    in_suite("surrogate", mixture_suite.mixings),
    in_suite("reweighted", mixture_suite.reweighted),
    in_suite("transfer", mixture_suite.transfer),
    in_suite("saturation", mixture_suite.saturation),
    Attack(
        "autoattack",
        {part: partial(standard.autoattack, part) for part in standard.PARTS},
        fits=lambda threat: threat.library is not None,
    ),
    Attack("steps", sweeps.steps, group=SWEEPS, white_box=True),
    Attack("radius", sweeps.radius, group=SWEEPS),
)
"""A new attack: its function and its name here, at the place where it runs. Cheap ones come first:
an image that is broken is not attacked by the expensive ones."""


def standard_attacks() -> tuple[str, ...]:
    """Those of no group."""
    return tuple(attack.name for attack in ATTACKS if attack.group is None)


def groups() -> tuple[str, ...]:
    return tuple(dict.fromkeys(attack.group for attack in ATTACKS if attack.group))


def full() -> tuple[str, ...]:
    """What promotion asks for: everything."""
    return (*standard_attacks(), *groups())


def names() -> tuple[str, ...]:
    """All that may be asked for: attacks, those of groups, and groups."""
    grouped = tuple(attack.name for attack in ATTACKS if attack.group)
    return (*standard_attacks(), *grouped, *groups())


def known(name: str) -> str:
    """The name itself. Raises `ValueError`, which says which there are."""
    if name not in names():
        raise ValueError(f"unknown attack {name!r} (there are: {', '.join(names())})")
    return name


AttackName = Annotated[str, AfterValidator(known)]


def wanted(asked: Sequence[str]) -> tuple[Attack, ...]:
    """Those that are named, by themselves or by their group, in the order in which they run."""
    return tuple(attack for attack in ATTACKS if attack.name in asked or attack.group in asked)


def after_suite() -> tuple[str, ...]:
    """Attacks on any model that are left only what those on mixtures have not broken."""
    first = next(place for place, attack in enumerate(ATTACKS) if attack.of_mixtures)
    return tuple(attack.name for attack in ATTACKS[first:] if not attack.of_mixtures)


def attack_of(stage: str) -> str:
    """The attack's name of a stage's."""
    return stage.partition(".")[0]


def of_stage(stage: str) -> Attack | None:
    """None for the clean one."""
    return next((attack for attack in ATTACKS if attack.name == attack_of(stage)), None)


def run_of(stage: str) -> Run:
    attack = of_stage(stage)
    return standard.clean if attack is None else attack.stages[stage]
