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
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from fmoe import config
from fmoe.config import AttackName, Config
from fmoe.domains import Domain, Suggest, Sweep, Walk
from fmoe.errors import UserError
from fmoe.schema import Spec
from fmoe.training import METRICS

logger = logging.getLogger(__name__)

SAMPLES = 100
RESAMPLED = 0.25
Direction = Literal["max", "min"]


class Asha(Spec):
    """Asynchronous successive halving (arXiv 1810.05934): the best 1/reduction of a rung go on.

    Rungs are at grace, grace * reduction, … epochs.
    """

    kind: Literal["asha"] = "asha"
    grace: PositiveInt = 1
    reduction: Annotated[int, Field(ge=2)] = 3


class Fifo(Spec):
    """Every trial runs to its end."""

    kind: Literal["fifo"] = "fifo"


class PBT(Spec):
    """Population based training (arXiv 1711.09846): bad trials go on from good ones' weights."""

    kind: Literal["pbt"] = "pbt"
    every: PositiveInt = 2
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25


class Tpe(Spec):
    """Tree-structured Parzen estimator (Optuna's), after `startup` random trials."""

    kind: Literal["tpe"] = "tpe"
    startup: PositiveInt = 5


class Nsga2(Spec):
    """Genetic search for the Pareto front of several metrics (Optuna's)."""

    kind: Literal["nsga2"] = "nsga2"
    population: Annotated[int, Field(ge=2)] = 8


class Random(Spec):
    kind: Literal["random"] = "random"


class Grid(Spec):
    """All combinations, in order; choices, integers and quantised ranges only."""

    kind: Literal["grid"] = "grid"


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
        return self.baseline and self.scheduler.kind != "pbt"

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.scheduler.kind == "pbt" and self.searcher.kind == "grid":
            raise ValueError("searcher: grid, but pbt moves away from where a trial starts")
        for metric in self.metrics:
            if metric not in METRICS:
                raise ValueError(
                    f"metrics: {metric} is not reported (there are: {', '.join(METRICS)})"
                )
        if self.searcher.kind == "nsga2" and len(self.metrics) < 2:
            raise ValueError("searcher: nsga2 looks for a front: give two metrics")
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
        trials = self.study.budget.trials
        if self.study.searcher.kind != "grid":
            return trials
        return min(
            trials, int(self.study.has_baseline) + sum(1 for _ in islice(self.grid(), trials))
        )

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
    if space.study.scheduler.kind == "pbt":
        for domain in space.domains:
            if not domain.path.startswith(LIVE):
                raise UserError(
                    f"{space.source}: {domain.path}: pbt changes a trial while it trains, and this "
                    f"decides its network or experts; possible are {', '.join(LIVE)}"
                )
    if space.study.searcher.kind == "grid":
        next(space.grid(), None)
    assert space.samples


COMMON = ("data.name", "data.val_images", "data.train_images", "evaluate", "joint.validation")
LIVE = ("gate.temperature", "joint.attack", "joint.loss", "joint.optimizer", "joint.balance")
"""What may change between two epochs of a mixture."""
