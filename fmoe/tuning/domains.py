"""The values that one path of a space may take, and ways through all of them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, assert_never, get_args

from fmoe import config
from fmoe.errors import UserError
from fmoe.schema import parse_ratio


class Suggest(Protocol):
    """Where values come from; Optuna's trials are of this kind."""

    def suggest_categorical(self, name: str, choices: Sequence[str], /) -> Any: ...
    def suggest_float(
        self, name: str, low: float, high: float, /, *, step: float | None = None, log: bool = False
    ) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, /) -> int: ...


Kind = Literal["choice", "uniform", "loguniform", "quniform", "int"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Domain:
    """The values of one path. when: only where these paths have one of these values."""

    path: str
    kind: Kind
    given: list[Any]
    when: dict[str, Any]

    @classmethod
    def parse(cls, path: str, value: Any) -> Domain:
        """Raises `UserError`, starting with the path."""
        keys = [key for key in value if key != "when"] if isinstance(value, dict) else []
        kinds = [kind for kind in KINDS if kind in keys]
        if len(keys) != 1 or not kinds:
            raise UserError(f"{path}: expected one of {', '.join(KINDS)}, as {{choice: [1, 2]}}")
        kind, given, when = kinds[0], value[kinds[0]], value.get("when", {})
        if not (isinstance(when, dict) and all(isinstance(key, str) for key in when)):
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
                value = config.get(tree, path)
            except KeyError:
                return False
            if value != wanted and not (isinstance(wanted, list) and value in wanted):
                return False
        return True

    def sample(self, trial: Suggest) -> Any:
        match self.kind:
            case "choice":
                # Optuna's choices are plain values: lists and parts of the tree go as JSON
                coded = [json.dumps(option, default=str) for option in self.given]  # a YAML date
                return json.loads(trial.suggest_categorical(self.path, coded))
            case "int":
                low, high = (int(bound) for bound in self.given)
                return trial.suggest_int(self.path, low, high)
            case "quniform":
                low, high, step = self.given
                return round(trial.suggest_float(self.path, low, high, step=step), 12)
            case "uniform" | "loguniform":
                low, high = self.given
                return trial.suggest_float(self.path, low, high, log=self.kind == "loguniform")
            case _:
                assert_never(self.kind)

    def near(self, value: Any, draw: random.Random) -> Any:
        match self.kind:
            case "choice":
                same = [i for i, option in enumerate(self.given) if option == value]
                index = (same[0] if same else 0) + draw.choice((-1, 1))
                return self.given[min(max(index, 0), len(self.given) - 1)]
            case "int":
                low, high = self.given
                return int(min(max(value + draw.choice((-1, 1)), low), high))
            case "quniform":
                low, high, step = self.given
                steps = round((value - low) / step) + draw.choice((-1, 1))
                last = int((high - low) / step + 1e-9)
                return round(low + step * min(max(steps, 0), last), 12)
            case "uniform" | "loguniform":
                low, high = self.given
                return min(max(value * draw.choice((0.8, 1.2)), low), high)
            case _:
                assert_never(self.kind)


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
    """One leaf of the tree of all combinations; options: which one at each branch, from 0."""

    def __init__(self, options: list[int]):
        self.options, self.sizes = options, list[int]()

    def _option(self, size: int) -> int:
        at = len(self.sizes)
        self.sizes.append(size)
        return self.options[at] if at < len(self.options) else 0

    def suggest_categorical(self, _name: str, choices: Sequence[str]) -> str:
        return choices[self._option(len(choices))]

    def suggest_float(
        self, _name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        assert step is not None
        assert not log
        return low + step * self._option(int((high - low) / step + 1e-9) + 1)

    def suggest_int(self, _name: str, low: int, high: int) -> int:
        return low + self._option(high - low + 1)

    def following(self) -> list[int] | None:
        """The next leaf's options, as an odometer counts; None after the last."""
        options = (self.options + [0] * len(self.sizes))[: len(self.sizes)]
        while options and options[-1] + 1 == self.sizes[len(options) - 1]:
            options.pop()
        return [*options[:-1], options[-1] + 1] if options else None
