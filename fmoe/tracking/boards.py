"""Metrics for TensorBoard beside MLflow, where FMOE_TENSORBOARD names a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Metric

from fmoe.errors import UserError, first_line

SWITCH = "FMOE_TENSORBOARD"


def folder() -> Path | None:
    """The folder of all runs; None where no boards are asked for. Raises `UserError` for one that
    cannot be written."""
    name = os.environ.get(SWITCH)
    if not name:
        return None
    place = Path(name).expanduser()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{SWITCH}={name}: cannot be written ({first_line(error)})") from None
    return place


@dataclass
class Board:
    """A run's events, in a folder that is called as it is; written within a second."""

    place: Path
    writer: Any = None

    @classmethod
    def of(cls, run: str) -> Board | None:
        """Raises `UserError`."""
        place = folder()
        return None if place is None else cls(place / run)

    def log(self, metrics: Iterable[Metric]) -> None:
        from tensorboardX import SummaryWriter  # Ray Tune brings it along

        if self.writer is None:
            # files are called by the second: two tries within one would overwrite each other
            suffix = f".{time.time_ns():x}"
            self.writer = SummaryWriter(str(self.place), flush_secs=1, filename_suffix=suffix)
        for metric in metrics:
            self.writer.add_scalar(
                metric.key, metric.value, metric.step, walltime=metric.timestamp / 1000
            )

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.writer = None
