"""tune_spaces/*.yaml: what a study varies, what it is after, and what it may cost. No Ray.

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
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from fmoe import config
from fmoe.config import AttackName, Config
from fmoe.errors import UserError, first_line
from fmoe.schema import Spec, parse_ratio
from fmoe.training import METRICS

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


class Suggest(Protocol):
    """Where values come from; Optuna's trials are of this kind."""

    def suggest_categorical(self, name: str, choices: Sequence[str], /) -> Any: ...
    def suggest_float(
        self, name: str, low: float, high: float, /, *, step: float | None = None, log: bool = False
    ) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, /) -> int: ...


KINDS = ("choice", "uniform", "loguniform", "quniform", "int")


@dataclass(frozen=True)
class Domain:
    """The values of one path. when: only where these paths have one of these values."""

    path: str
    kind: str
    given: list[Any]
    when: dict[str, Any]

    @classmethod
    def parse(cls, path: str, value: Any) -> Domain:
        """Raises `UserError`, starting with the path."""
        kinds = [key for key in value if key != "when"] if isinstance(value, dict) else []
        if len(kinds) != 1 or kinds[0] not in KINDS:
            raise UserError(f"{path}: expected one of {', '.join(KINDS)}, as {{choice: [1, 2]}}")
        kind, given, when = kinds[0], value[kinds[0]], value.get("when", {})
        if not isinstance(when, dict):
            raise UserError(f"{path}: when: expected path: value, as {{gate.kind: conv}}")
        if not isinstance(given, list) or not given:
            raise UserError(f"{path}: {kind}: expected a list")
        if kind != "choice":
            given = [_number(path, kind, part) for part in given]
            _check_range(path, kind, given)
        return cls(path, kind, given, when)

    def holds(self, tree: Any) -> bool:
        for path, wanted in self.when.items():
            try:
                found = config.get(tree, path)
            except KeyError:
                return False
            if found != wanted and not (isinstance(wanted, list) and found in wanted):
                return False
        return True

    def sample(self, trial: Suggest) -> Any:
        if self.kind == "choice":
            # Optuna's choices are plain values: lists and parts of the tree go as JSON
            coded = [json.dumps(option) for option in self.given]
            return json.loads(trial.suggest_categorical(self.path, coded))
        if self.kind == "int":
            low, high = (int(bound) for bound in self.given)
            return trial.suggest_int(self.path, low, high)
        low, high = self.given[:2]
        if self.kind == "quniform":
            return round(trial.suggest_float(self.path, low, high, step=self.given[2]), 12)
        return trial.suggest_float(self.path, low, high, log=self.kind == "loguniform")

    def near(self, value: Any, draw: random.Random) -> Any:
        if self.kind == "choice":
            places = [i for i, option in enumerate(self.given) if option == value]
            place = (places[0] if places else 0) + draw.choice((-1, 1))
            return self.given[min(max(place, 0), len(self.given) - 1)]
        low, high = self.given[:2]
        if self.kind == "int":
            return int(min(max(value + draw.choice((-1, 1)), low), high))
        if self.kind == "quniform":
            steps = round((value - low) / self.given[2]) + draw.choice((-1, 1))
            last = int((high - low) / self.given[2] + 1e-9)
            return round(low + self.given[2] * min(max(steps, 0), last), 12)
        return min(max(value * draw.choice((0.8, 1.2)), low), high)


def _number(path: str, kind: str, value: Any) -> float:
    try:
        number = parse_ratio(value)
    except ValueError as error:
        raise UserError(f"{path}: {kind}: {error}") from None
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise UserError(f"{path}: {kind}: {value!r} is not a number")
    return number


def _check_range(path: str, kind: str, given: list[float]) -> None:
    wanted = 3 if kind == "quniform" else 2
    if len(given) != wanted:
        shape = "[low, high, step]" if wanted == 3 else "[low, high]"
        raise UserError(f"{path}: {kind}: expected {shape}")
    low, high = given[:2]
    if low > high or (low == high and kind != "int"):
        raise UserError(f"{path}: {kind}: the range from {low:g} to {high:g} is empty")
    if kind == "loguniform" and low <= 0:
        raise UserError(f"{path}: loguniform: {low:g} has no logarithm; start above 0")
    if kind == "int" and (low != int(low) or high != int(high)):
        raise UserError(f"{path}: int: {low:g} and {high:g} are not both integers")
    if kind == "quniform" and not 0 < given[2] <= high - low:
        raise UserError(f"{path}: quniform: a step of {given[2]:g} does not fit {low:g}..{high:g}")


@dataclass(frozen=True)
class Space:
    """A checked study over a recipe. source: the file, for messages."""

    study: Study
    base: Config
    domains: tuple[Domain, ...]
    source: str

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
        """Values near these, as PBT explores: each drawn anew, or moved one step or by a fifth."""
        fresh = self.sample(Sweep(draw.randrange(SAMPLES, 2**31)))
        moved = {
            domain.path: domain.near(values[domain.path], draw)
            if domain.path in values and draw.random() > RESAMPLED
            else fresh[domain.path]
            for domain in self.domains
            if domain.path in fresh or domain.path in values
        }
        return moved

    @cached_property
    def samples(self) -> list[Config]:
        """What the space gives, every option and both ends of every range among it."""
        return [self.config(self.sample(Sweep(index))) for index in range(SAMPLES)]

    @property
    def epochs(self) -> int:
        """Of the longest trial."""
        return max(sample.joint.epochs for sample in (self.base, *self.samples))

    def grid(self) -> Iterator[dict[str, Any]]:
        """All combinations in order. Raises `UserError` where a range has no steps."""
        for domain in self.domains:
            if domain.kind in ("uniform", "loguniform"):
                raise UserError(
                    f"{self.source}: {domain.path}: a grid needs choice, int or quniform, "
                    f"not {domain.kind}"
                )
        places: list[int] | None = []
        while places is not None:
            walk = Walk(places)
            yield self.sample(walk)
            places = walk.following()


class Sweep:
    """Sample `index` of a sweep: the first ones go through every option, the others are random."""

    def __init__(self, index: int):
        self.index, self.random = index, random.Random(index)

    def suggest_categorical(self, _name: str, choices: Sequence[str]) -> str:
        orderly = self.index < len(choices)
        return choices[self.index] if orderly else self.random.choice(choices)

    def suggest_float(
        self, _name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        if self.index < 2:
            return (low, high)[self.index]
        if log:
            return math.exp(self.random.uniform(math.log(low), math.log(high)))
        if step:
            return low + step * self.random.randint(0, int((high - low) / step + 1e-9))
        return self.random.uniform(low, high)

    def suggest_int(self, _name: str, low: int, high: int) -> int:
        return (low, high)[self.index] if self.index < 2 else self.random.randint(low, high)


class Walk:
    """One leaf of the tree of all combinations; places: which option at each branch, from 0."""

    def __init__(self, places: list[int]):
        self.places, self.sizes = places, list[int]()

    def _place(self, size: int) -> int:
        at = len(self.sizes)
        self.sizes.append(size)
        return self.places[at] if at < len(self.places) else 0

    def suggest_categorical(self, _name: str, choices: Sequence[str]) -> str:
        return choices[self._place(len(choices))]

    def suggest_float(
        self, _name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        assert step is not None
        assert not log
        return low + step * self._place(int((high - low) / step + 1e-9) + 1)

    def suggest_int(self, _name: str, low: int, high: int) -> int:
        return low + self._place(high - low + 1)

    def following(self) -> list[int] | None:
        """The next leaf's places, as an odometer counts; None after the last."""
        places = (self.places + [0] * len(self.sizes))[: len(self.sizes)]
        while places and places[-1] + 1 == self.sizes[len(places) - 1]:
            places.pop()
        return [*places[:-1], places[-1] + 1] if places else None


def load(
    file: str,
    overrides: Sequence[str] = (),
    *,
    budget: Mapping[str, Any] | None = None,
    scheduler: str | None = None,
    searcher: str | None = None,
) -> Space:
    """A space's file. overrides: as `--set`, on its recipe; the others take the place of its own.

    Raises `UserError` naming the file and the key.
    """
    path = Path(file)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not readable ({first_line(error)})") from None
    tree = config.parse_yaml(text, file)
    if budget:
        tree["budget"] = {**(tree.get("budget") or {}), **budget}
    for key, kind in (("scheduler", scheduler), ("searcher", searcher)):
        if kind and (tree.get(key) or {}).get("kind") != kind:
            tree[key] = {"kind": kind}
    try:
        study = Study.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{file}: {config.faults(error, tree)}") from None
    given = [f"{key}={json.dumps(value)}" for key, value in study.set.items()]
    base = config.load(beside(path, study.recipe), [*given, *overrides])
    try:
        domains = tuple(Domain.parse(key, value) for key, value in study.space.items())
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    space = Space(study, base, domains, file)
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
        next(space.grid())
    assert space.samples


COMMON = ("data.name", "data.val_images", "data.train_images", "evaluate", "joint.validation")
LIVE = ("gate.temperature", "joint.attack", "joint.loss", "joint.optimizer", "joint.balance")
"""What may change between two epochs of a mixture."""
