"""What stands in a space's file but for the space: what a study is after and what it may cost."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fmoe.evaluation.stages import AttackName
from fmoe.schema import Spec
from fmoe.training import metrics
from fmoe.tuning.schedulers import Asha, Scheduler
from fmoe.tuning.searchers import Searcher, Tpe

Direction = Literal["max", "min"]


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
