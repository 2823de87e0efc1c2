"""What an evaluation consists of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from fmoe.attacks.threat import Threat
from fmoe.errors import UserError
from fmoe.evaluation import stages

PROTOCOL = 4
"""Raised whenever a change could move a figure."""

STANDARD, FULL = stages.standard_attacks(), stages.full()
"""The attacks of no group, and what promotion asks for."""
MIXTURE = tuple(attack.name for attack in stages.wanted([stages.SUITE]))
"""Those that attack a mixture's parts."""


@dataclass(frozen=True)
class Settings:
    """attacks: names of attacks or groups of `fmoe.evaluation.stages`.

    threat: within which images are attacked; batch_size images are one chunk. experts: names of a
    mixture's, for the tables. selected_on: the split by which the model was chosen. collapse_stops:
    whether a collapsed gate is a flag, or just a note. fast: attacks run on a folded copy
    (`fmoe.fast.folding`); what breaks it must break the model itself to count.
    """

    attacks: tuple[str, ...]
    threat: Threat
    batch_size: int = 250
    seed: int = 0
    experts: tuple[str, ...] = ()
    selected_on: Literal["validation", "test"] | None = None
    collapse_stops: bool = True
    fast: bool = False

    def __post_init__(self) -> None:
        """Raises `UserError`, which names the argument."""
        whole("batch_size", self.batch_size, least=1)
        whole("seed", self.seed)
        if self.selected_on not in (None, "validation", "test"):
            raise UserError(
                f"selected_on: {self.selected_on!r}; expected 'validation', 'test' or None"
            )
        for name in self.attacks:
            try:
                stages.known(name)
            except ValueError as error:
                raise UserError(str(error)) from None
        for attack in stages.wanted(self.attacks):
            if not attack.fits(self.threat):
                raise UserError(f"attack {attack.name}: there is none in norm {self.threat.norm}")

    @property
    def eps(self) -> float:
        return self.threat.eps

    @property
    def stages(self) -> tuple[str, ...]:
        """The attacks in the order in which they run."""
        return tuple(attack.name for attack in stages.wanted(self.attacks))

    def plain(self) -> dict[str, Any]:
        """As JSON-like values: the same for the same settings."""
        return asdict(self) | {"threat": self.threat.model_dump()}


def whole(name: str, value: object, *, least: int = -(2**63)) -> None:
    """Raises `UserError` for anything but a Python int of 64 bits from `least` on."""
    if type(value) is not int or not least <= value < 2**63:
        what = "a whole number" if least < 0 else f"a whole number from {least} on"
        raise UserError(f"{name}: {value!r}; expected {what}")
