"""A study's trials as they are kept: one JSON file a trial, nothing pickled.

`Ledger` reads and writes them; whatever was killed, a resume finds every epoch that was reported.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ConfigDict, TypeAdapter, ValidationError

from fmoe.storage.folder import Damaged, Folder
from fmoe.tuning.settings import Direction

Status = Literal["running", "finished", "pruned", "stopped", "failed"]
"""stopped: by the end of the study's time."""


@dataclass
class Trial:
    """One trial. history: metrics of each epoch, with `at`, seconds since the study began.

    Under PBT a trial takes over another's weights: history is then that of its weights, values are
    the latest, and changes say when they changed and from whom they came.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    number: int
    values: dict[str, Any]
    status: Status = "running"
    history: list[dict[str, float]] = field(default_factory=list)
    error: str | None = None
    asked: float = field(default_factory=time.time)
    started: float = field(default_factory=time.time)
    """asked: when it was given to Tune; started: when there was a process for it."""
    ended: float | None = None
    experts: dict[str, float] = field(default_factory=dict)
    process: str | None = None
    """host:pid of the process that trained it (that drove it, with several workers)."""
    run_id: str | None = None
    changes: list[dict[str, Any]] = field(default_factory=list)
    search: dict[str, Any] = field(default_factory=dict)
    """What the searcher needs to go on."""

    def best(self, metrics: Mapping[str, Direction]) -> int | None:
        """The epoch with the best first metric; None before the first."""
        if not self.history:
            return None
        name, direction = next(iter(metrics.items()))
        scores = [signed(epoch[name], direction) for epoch in self.history]
        return scores.index(max(scores))

    def figures(self, metrics: Mapping[str, Direction]) -> dict[str, float] | None:
        """The study's metrics at the best epoch."""
        best = self.best(metrics)
        return None if best is None else {name: self.history[best][name] for name in metrics}


TRIAL = TypeAdapter(Trial)


def elapsed(trials: Sequence[Trial]) -> float:
    """Seconds of the study's time that earlier tries have used."""
    return max((epoch["at"] for trial in trials for epoch in trial.history), default=0.0)


def signed(value: float, direction: Direction) -> float:
    """Such that more is better."""
    return value if direction == "max" else -value


def ranked(trials: Sequence[Trial], metrics: Mapping[str, Direction]) -> list[Trial]:
    """Those with a figure, best first: by the first metric; with several, the front first."""
    name, direction = next(iter(metrics.items()))
    scored = [trial for trial in trials if trial.figures(metrics) and trial.status != "failed"]
    front = {trial.number for trial in pareto(scored, metrics)}

    def key(trial: Trial) -> tuple[bool, float, int]:
        figures = trial.figures(metrics)
        assert figures is not None
        return trial.number not in front, -signed(figures[name], direction), trial.number

    return sorted(scored, key=key)


def pareto(trials: Sequence[Trial], metrics: Mapping[str, Direction]) -> list[Trial]:
    """The trials that no other beats in every metric."""
    points = []
    for trial in trials:
        figures = trial.figures(metrics)
        if figures is not None and trial.status != "failed":
            points.append((trial, [signed(figures[m], d) for m, d in metrics.items()]))

    def beaten(point: list[float]) -> bool:
        return any(
            all(a >= b for a, b in zip(other, point, strict=True)) and other != point
            for _, other in points
        )

    return [trial for trial, point in points if not beaten(point)]


def best_so_far(
    trials: Sequence[Trial], metric: str, direction: Direction
) -> list[tuple[float, float]]:
    """(seconds, best value by then), at each time it got better."""
    reports = sorted((epoch["at"], epoch[metric]) for trial in trials for epoch in trial.history)
    course: list[tuple[float, float]] = []
    for at, value in reports:
        if not course or signed(value, direction) > signed(course[-1][1], direction):
            course.append((at, value))
    return course


@dataclass(frozen=True)
class Ledger:
    """The study's folder: study.json, trials/NNNN/trial.json, study.parquet, result.json."""

    folder: Folder

    def trial_folder(self, number: int) -> Folder:
        return self.folder / f"trials/{number:04d}"

    def save(self, trial: Trial) -> None:
        self.trial_folder(trial.number).write_json("trial.json", asdict(trial))

    def trials(self) -> list[Trial]:
        """By number. Raises `Damaged` for a file that is not what `save` writes."""
        kept = []
        for name in sorted((self.folder / "trials").names()):
            folder = self.folder / f"trials/{name}"
            if folder.exists("trial.json"):
                tree = folder.read_json("trial.json")
                try:
                    trial = TRIAL.validate_python(tree)
                except ValidationError:
                    raise Damaged(f"{folder.uri}/trial.json: not a trial") from None
                if name != f"{trial.number:04d}" or not all("at" in e for e in trial.history):
                    raise Damaged(f"{folder.uri}/trial.json: not a trial")
                kept.append(trial)
        return sorted(kept, key=lambda trial: trial.number)

    def write_table(self, trials: Sequence[Trial]) -> None:
        buffer = io.BytesIO()
        pq.write_table(table(trials), buffer)
        self.folder.write("study.parquet", buffer.getvalue())


def table(trials: Sequence[Trial]) -> pa.Table:
    """A row per trial and epoch; a trial that never finished an epoch has one without.

    Sampled values are columns `value.PATH`: numbers where all are, JSON otherwise.
    """
    rows = []
    for trial in trials:
        about = {"trial": trial.number, "status": trial.status, "error": trial.error}
        values = {f"value.{path}": value for path, value in trial.values.items()}
        for index, metrics in enumerate(trial.history):
            rows.append({**about, "epoch": index, **metrics, **values})
        if not trial.history:
            rows.append({**about, "epoch": None, **values})
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: _column([row.get(name) for row in rows]) for name in names}
    return pa.table(columns)


def _column(cells: list[Any]) -> pa.Array:
    given = [cell for cell in cells if cell is not None]
    if all(isinstance(cell, int) and not isinstance(cell, bool) for cell in given) and given:
        return pa.array(cells, pa.int64())
    if (
        all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in given)
        and given
    ):
        return pa.array([None if cell is None else float(cell) for cell in cells], pa.float64())
    coded = [c if c is None or isinstance(c, str) else json.dumps(c) for c in cells]
    return pa.array(coded, pa.string())
