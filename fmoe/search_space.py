"""Spaces: what a study varies, what it is after, and what it may cost. No Ray.

Those of `tune_spaces` come with the wheel and go by name; others are files.

    recipe: digits
    set: {joint.epochs: 6}
    metrics: {val_robust: max}
    budget: {trials: 12}
    space:
      gate.kind: {choice: [conv, linear]}
      gate.width: {choice: [4, 8], when: {gate.kind: conv}}
      gate.temperature: {loguniform: [0.3, 3]}

Paths are those of `--set`. Values are drawn in the file's order: `when` compares with what stands
at a path by then, and a whole part (`gate: {choice: [{kind: conv}, …]}`) may come before its keys.
A space is checked before anything starts: every path is in the recipe, and what it samples are
configurations.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self, get_args

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from fmoe import config, metrics
from fmoe.config import AttackName, Config
from fmoe.domains import Domain, Suggest, Sweep, Walk
from fmoe.errors import UserError
from fmoe.schema import Spec

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

logger = logging.getLogger(__name__)

SAMPLES = 100
RESAMPLED = 0.25
Direction = Literal["max", "min"]


class RayTune(Protocol):
    """What a scheduler is made of: `fmoe.on_ray` gives it, which alone imports Ray.

    Each of them hears of a trial after every epoch, and goes by the study's first metric. Trial 0
    is never ended early where it is the recipe as it stands.
    """

    def stock(self, name: str, **settings: Any) -> Any:
        """The class of that name in `ray.tune.schedulers`. On a resume it starts anew."""

    def to_the_end(self) -> Any:
        """No trial is ended early."""

    def halving(self, *, grace: int, reduction: int) -> Any:
        """Ray's ASHA; on a resume it knows the trials of earlier tries."""

    def population(self, *, every: int, quantile: float) -> Any:
        """Ray's PBT over the space's values."""


class SchedulerSpec(Spec):
    """How long trials run. A new one: a class with its settings and `build`, named in `Scheduler`.

    kind: its name in a space. takes_over: whether trials go on from others' weights; then no trial
    stays as it is, all start at once on one machine, and only what may change between two epochs
    can be in the space.
    """

    kind: str
    takes_over: ClassVar[bool] = False

    def build(self, ray: RayTune) -> Any:
        """Ray Tune's scheduler (a `ray.tune.schedulers.TrialScheduler`)."""
        raise NotImplementedError


class Asha(SchedulerSpec):
    """Asynchronous successive halving (arXiv 1810.05934): the best 1/reduction of a rung go on.

    Rungs are at grace, grace * reduction, … epochs.
    """

    kind: Literal["asha"] = "asha"
    grace: PositiveInt = 1
    reduction: Annotated[int, Field(ge=2)] = 3

    def build(self, ray: RayTune) -> Any:
        return ray.halving(grace=self.grace, reduction=self.reduction)


class Fifo(SchedulerSpec):
    """Every trial runs to its end."""

    kind: Literal["fifo"] = "fifo"

    def build(self, ray: RayTune) -> Any:
        return ray.to_the_end()


class PBT(SchedulerSpec):
    """Population based training (arXiv 1711.09846): bad trials go on from good ones' weights."""

    takes_over = True
    kind: Literal["pbt"] = "pbt"
    every: PositiveInt = 2
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25

    def build(self, ray: RayTune) -> Any:
        return ray.population(every=self.every, quantile=self.quantile)


class SearcherSpec(Spec):
    """Where values come from. A new one: a class with its settings, named in `Searcher`; it draws
    (`sampler`), or has all trials in order (`trials`, and `in_order` says so).

    kind: its name in a space. front: whether it looks for the best of several metrics at once.
    """

    kind: str
    front: ClassVar[bool] = False
    in_order: ClassVar[bool] = False

    def sampler(self, seed: int) -> BaseSampler:
        """Optuna's sampler; a resume tells it of all earlier trials."""
        raise NotImplementedError

    def trials(self, space: Space) -> Iterator[dict[str, Any]]:
        """The values of every trial, where `in_order`."""
        raise NotImplementedError


class Tpe(SearcherSpec):
    """Tree-structured Parzen estimator (Optuna's), after `startup` random trials."""

    kind: Literal["tpe"] = "tpe"
    startup: PositiveInt = 5

    def sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import TPESampler

        # trials run at once: those under way count as bad, so that none is tried twice
        return TPESampler(n_startup_trials=self.startup, seed=seed, constant_liar=True)


class Nsga2(SearcherSpec):
    """Genetic search for the Pareto front of several metrics (Optuna's)."""

    front = True
    kind: Literal["nsga2"] = "nsga2"
    population: Annotated[int, Field(ge=2)] = 8

    def sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import NSGAIISampler

        return NSGAIISampler(population_size=self.population, seed=seed)


class Random(SearcherSpec):
    """Values drawn without regard to any trial's figures."""

    kind: Literal["random"] = "random"

    def sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=seed)


class Grid(SearcherSpec):
    """All combinations, in order; choices, integers and quantised ranges only."""

    in_order = True
    kind: Literal["grid"] = "grid"

    def trials(self, space: Space) -> Iterator[dict[str, Any]]:
        return space.grid()


Scheduler = Annotated[Asha | Fifo | PBT, Field(discriminator="kind")]
Searcher = Annotated[Tpe | Nsga2 | Random | Grid, Field(discriminator="kind")]


class Budget(Spec):
    """A study ends with its last trial, or when its time is over."""

    trials: PositiveInt = 20
    minutes: PositiveFloat | None = None


def final_attacks() -> list[AttackName]:
    return ["pgd", "pgd50"]


class Final(Spec):
    """The best `top` trials are judged again, on all validation images and under these attacks."""

    top: PositiveInt = 3
    attacks: list[AttackName] = Field(default_factory=final_attacks, min_length=1)


class Study(Spec):
    """A space's file, but for the space."""

    recipe: str
    set: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Direction] = Field(default={"val_robust": "max"}, min_length=1)
    """The first one is what pruning and PBT go by."""
    budget: Budget = Budget()
    scheduler: Scheduler = Asha()
    searcher: Searcher = Tpe()
    final: Final = Final()
    baseline: bool = True
    """The first trial is the recipe as it stands, and is never pruned."""
    space: dict[str, Any] = Field(min_length=1)

    @property
    def has_baseline(self) -> bool:
        """Under PBT no trial stays as it is."""
        return self.baseline and not self.scheduler.takes_over

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.scheduler.takes_over and self.searcher.in_order:
            raise ValueError(
                f"searcher: {self.searcher.kind}, but {self.scheduler.kind} moves away from where "
                "a trial starts"
            )
        reported = metrics.names()
        for metric in self.metrics:
            if metric not in reported:
                raise ValueError(
                    f"metrics: {metric} is not reported (there are: {', '.join(reported)})"
                )
        if self.searcher.front and len(self.metrics) < 2:
            raise ValueError(f"searcher: {self.searcher.kind} looks for a front: give two metrics")
        return self


@dataclass(frozen=True)
class Space:
    """A checked study over a recipe. source: the name or file, for messages; text: as written."""

    study: Study
    base: Config
    domains: tuple[Domain, ...]
    source: str
    text: str

    def sample(self, trial: Suggest) -> dict[str, Any]:
        """One value for each path whose condition holds, in the file's order."""
        values, tree = {}, self.base.plain()
        for domain in self.domains:
            if domain.holds(tree):
                values[domain.path] = domain.sample(trial)
                config.put(tree, domain.path, copy.deepcopy(values[domain.path]), self.source)
        return values

    def config(self, values: Mapping[str, Any]) -> Config:
        """The recipe with these values. Raises `UserError`."""
        tree = self.base.plain()
        for path, value in values.items():
            config.put(tree, path, copy.deepcopy(value), f"{self.source}: {path}")
        return config.validate(tree, self.source)

    def explore(self, values: Mapping[str, Any], draw: random.Random) -> dict[str, Any]:
        """Values near these, as PBT explores: each drawn anew, or moved one step or by a fifth.

        Of the paths whose condition holds by then, as `sample` does.
        """
        fresh = Sweep(draw.randrange(SAMPLES, 2**31))
        moved, tree = {}, self.base.plain()
        for domain in self.domains:
            if not domain.holds(tree):
                continue
            near = domain.path in values and draw.random() > RESAMPLED
            value = domain.near(values[domain.path], draw) if near else domain.sample(fresh)
            moved[domain.path] = value
            config.put(tree, domain.path, copy.deepcopy(value), self.source)
        return moved

    @property
    def most(self) -> int:
        """Trials of the whole study: a grid may have fewer than the budget."""
        trials, searcher = self.study.budget.trials, self.study.searcher
        if not searcher.in_order:
            return trials
        listed = sum(1 for _ in islice(searcher.trials(self), trials))
        return min(trials, int(self.study.has_baseline) + listed)

    @cached_property
    def samples(self) -> list[Config]:
        """What the space gives, every option and both ends of every range among it."""
        return [self.config(self.sample(Sweep(index))) for index in range(SAMPLES)]

    @property
    def epochs(self) -> int:
        """Of the longest trial."""
        return max(sample.joint.epochs for sample in (self.base, *self.samples))

    def grid(self) -> Iterator[dict[str, Any]]:
        """All combinations that are configurations, in order; raises `UserError` for no steps."""
        for domain in self.domains:
            if domain.kind in ("uniform", "loguniform"):
                raise UserError(
                    f"{self.source}: {domain.path}: a grid needs choice, int or quniform, "
                    f"not {domain.kind}"
                )
        places: list[int] | None = []
        while places is not None:
            walk = Walk(places)
            values = self.sample(walk)
            try:
                self.config(values)
            except UserError as error:
                logger.warning("%s; left out", error)
            else:
                yield values
            places = walk.following()


def spaces() -> list[str]:
    """The names of those that come with the wheel."""
    files = resources.files("tune_spaces").iterdir()
    return sorted(file.name[:-5] for file in files if file.name.endswith(".yaml"))


def written(space: str) -> str:
    """The text of a packaged space by name, or of a file. Raises `UserError`."""
    if space in spaces():
        return (resources.files("tune_spaces") / f"{space}.yaml").read_text()
    path, names = Path(space), ", ".join(spaces())
    if os.path.lexists(path):
        return config.read_text(path)
    if path.suffix or os.sep in space:
        raise UserError(f"{space}: not readable (no such file); by name there are {names}")
    raise UserError(f"unknown space {space!r}: there are {names}; or give a YAML file")


def kinds(part: str) -> list[str]:
    """The names of what a part of a study (`scheduler`, `searcher`) may be, as in its union."""
    members = get_args(Study.model_fields[part].annotation)
    return [member.model_fields["kind"].default for member in members]


def load(
    file: str,
    overrides: Sequence[str] = (),
    *,
    budget: Mapping[str, Any] | None = None,
    scheduler: str | None = None,
    searcher: str | None = None,
) -> Space:
    """A packaged space's name or a file. overrides: as `--set`, on its recipe; the others take the
    place of its own.

    Raises `UserError` naming the file and the key.
    """
    text = written(file)
    tree = config.parse_yaml(text, file)
    own = tree.get("budget") or {}
    if budget and isinstance(own, dict):  # what is none is told of below
        tree["budget"] = {**own, **budget}
    for key, kind in (("scheduler", scheduler), ("searcher", searcher)):
        own = tree.get(key)
        if kind and kind not in kinds(key):
            raise UserError(
                f"--{key} {kind}: there is no such one; there are {', '.join(kinds(key))}"
            )
        if kind and not (isinstance(own, dict) and own.get("kind") == kind):
            tree[key] = {"kind": kind}
    try:
        study = Study.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{file}: {config.faults(error, tree)}") from None
    given = [f"{key}={json.dumps(value, default=str)}" for key, value in study.set.items()]
    base = config.load(beside(Path(file), study.recipe), [*given, *overrides])
    try:
        domains = tuple(Domain.parse(key, value) for key, value in study.space.items())
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    space = Space(study, base, domains, file, text)
    check(space)
    return space


def beside(file: Path, recipe: str) -> str:
    """A recipe's file is looked for beside the space's."""
    other = file.parent / recipe
    return str(other) if recipe not in config.recipes() and other.is_file() else recipe


def check(space: Space) -> None:
    """Raises `UserError` where a path is unknown, or a sampled configuration not valid."""
    before: list[str] = []
    for domain in space.domains:
        if domain.path.startswith(COMMON):
            raise UserError(
                f"{space.source}: {domain.path}: decides what trials learn from or how they are "
                "judged, and must be the same for all; give it under `set`"
            )
        for path in (domain.path, *domain.when):
            made = any(path.startswith(f"{part}.") or path == part for part in before)
            made |= any(part.endswith(".kind") and path.startswith(part[:-4]) for part in before)
            try:
                config.get(space.base.plain(), path)
            except (KeyError, ValueError):
                if not made:
                    raise UserError(
                        f"{space.source}: {path}: there is no such path in {space.study.recipe}"
                    ) from None
        before.append(domain.path)
    scheduler, searcher = space.study.scheduler, space.study.searcher
    if scheduler.takes_over:
        for domain in space.domains:
            if not domain.path.startswith(LIVE):
                raise UserError(
                    f"{space.source}: {domain.path}: {scheduler.kind} changes a trial while it "
                    "trains, and this decides its network or experts; possible are "
                    f"{', '.join(LIVE)}"
                )
    if searcher.in_order:
        next(searcher.trials(space), None)
    assert space.samples


COMMON = ("data.name", "data.val_images", "data.train_images", "evaluate", "joint.validation")
LIVE = ("gate.temperature", "joint.attack", "joint.loss", "joint.optimizer", "joint.balance")
"""What may change between two epochs of a mixture."""
