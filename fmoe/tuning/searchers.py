"""Where the values of a study's trials come from: each searcher's settings and Optuna's sampler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field, PositiveInt

from fmoe.schema import Spec
from fmoe.tuning.domains import Suggest

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


class Values(Protocol):
    """The values of a space, by path."""

    def sample(self, trial: Suggest) -> dict[str, Any]:
        """One for each path whose condition holds."""

    def grid(self) -> Iterator[dict[str, Any]]:
        """All combinations, in order."""


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

    def trials(self, space: Values) -> Iterator[dict[str, Any]]:
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

    def trials(self, space: Values) -> Iterator[dict[str, Any]]:
        return space.grid()


Searcher = Annotated[Tpe | Nsga2 | Random | Grid, Field(discriminator="kind")]
