"""What each trial of a study gets of the cluster."""

from __future__ import annotations

from dataclasses import dataclass

import ray

from fmoe.errors import UserError
from fmoe.on_ray.session import Resources, grows

TRIALS_WHEN_GROWN = 4  # trials at once for which an autoscaler may bring GPUs


@dataclass(frozen=True)
class Share:
    """What a trial gets: so many workers with these resources; `at_once` trials fit the cluster."""

    workers: int
    resources: Resources
    at_once: int

    @classmethod
    def of_cluster(cls, workers: int, gpus: float | None) -> Share:
        """gpus: of each worker; None gives each one where the cluster has some.

        Raises `UserError` where not even one trial fits.
        """
        total = ray.cluster_resources()
        if gpus is None:
            gpus = 1 if total.get("GPU", 0) >= 1 else 0
        if workers > 1:
            gpus = int(gpus) if gpus == int(gpus) else _no_fraction(gpus)
        kind, each = ("GPU", float(gpus)) if gpus else ("CPU", 1.0)
        slots = int(total.get(kind, 0) / each + 1e-9)
        slots = min(slots, int(total.get("CPU", 0)))
        if grows() and gpus:  # more nodes come when trials wait
            return cls(workers, Resources(1, gpus), max(slots // workers, TRIALS_WHEN_GROWN))
        if workers > slots:
            raise UserError(
                f"--workers-per-trial {workers}: the cluster has room for {slots} "
                f"({int(total.get('CPU', 0))} CPUs, {int(total.get('GPU', 0))} GPUs)"
            )
        return cls(workers, Resources(1, gpus), slots // workers)


def _no_fraction(gpus: float) -> int:
    raise UserError(f"--gpus-per-worker {gpus:g}: several workers of a trial need whole GPUs")
