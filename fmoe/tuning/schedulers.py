"""How long the trials of a study run: each scheduler's settings, and how it is made on Ray Tune."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field, PositiveInt

from fmoe.schema import Spec


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


Scheduler = Annotated[Asha | Fifo | PBT, Field(discriminator="kind")]
