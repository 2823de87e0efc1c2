"""What a person sees of a study: a table of its trials, the best so far, the time left."""

from __future__ import annotations

import json
import time
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from fmoe.errors import plain
from fmoe.evaluation import Evaluation
from fmoe.tuning.search_space import Space
from fmoe.tuning.trials import Trial, ranked
from pipelines.display import on_stderr, redraws
from pipelines.output import figures, percent

SHOWN = 12  # trials of the table: the running ones, then the best


class StudyDisplay:
    """A live table on a terminal; elsewhere a line an ended trial."""

    def __init__(self, space: Space):
        self.space = space
        self.console = on_stderr()
        self.redraws = redraws(self.console)
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            console=self.console,
        )
        self.live = Live(console=self.console, refresh_per_second=2, transient=True)
        self.total = self.before = 0
        self.start = time.monotonic()

    def __enter__(self) -> StudyDisplay:
        if self.redraws:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.redraws:
            self.live.stop()

    def line(self, text: str) -> None:
        self.console.print(Text(plain(text)), soft_wrap=True)

    def begin(self, more: int, before: int, at_once: int) -> None:
        self.total, self.before = more + before, before
        self.start = time.monotonic()
        kept = f", {before} kept from before" if before else ""
        self.line(f"study  {self.total} trials{kept}, {min(at_once, more)} at a time")

    def update(self, trials: list[Trial]) -> None:
        if self.redraws:
            self.live.update(Group(self.table(trials), self.progress))

    def ended(self, trial: Trial, trials: list[Trial]) -> None:
        metrics = self.space.study.metrics
        scores = trial.figures(metrics)
        words = [f"trial {trial.number:<3} {trial.status:<8} {len(trial.history)} epochs"]
        if scores:
            words.append(_scores(scores))
        if trial.error:
            words.append(trial.error)
        words.append(_values(trial))
        best = ranked(trials, metrics)
        if best:
            top = best[0]
            words.append(f"(best: trial {top.number}, {_scores(top.figures(metrics) or {})}")
            words[-1] += f"; {self.left(trials)})"
        self.line("  ".join(word for word in words if word))
        self.update(trials)

    def left(self, trials: list[Trial]) -> str:
        """What remains, from the pace of the trials that ended in this try."""
        ended = sum(trial.status != "running" for trial in trials)
        here = ended - self.before
        if here < 1 or ended >= self.total:
            return f"{ended} of {self.total} trials"
        seconds = (time.monotonic() - self.start) / here * (self.total - ended)
        minutes, rest = divmod(round(seconds), 60)
        return f"{ended} of {self.total} trials, about {minutes}:{rest:02d} left"

    def table(self, trials: list[Trial]) -> Table:
        metrics = self.space.study.metrics
        title = Text(plain(f"{self.space.source}: {self.left(trials)}"), style="table.title")
        table = Table(title=title, title_justify="left")
        for heading in ("trial", "status", "epochs", *metrics, "values"):
            # a row is a line, however narrow the terminal is
            table.add_column(Text(plain(heading)), no_wrap=True, overflow="ellipsis")
        running = [trial for trial in trials if trial.status == "running"]
        best = [trial for trial in ranked(trials, metrics) if trial.status != "running"]
        for trial in (running + best)[:SHOWN]:
            scores = trial.figures(metrics) or {}
            cells = [_score(name, scores[name]) if name in scores else "" for name in metrics]
            cells = [str(trial.number), trial.status, str(len(trial.history)), *cells]
            table.add_row(*cells, Text(plain(_values(trial))))
        return table

    def final(self, trial: Trial, evaluation: Evaluation) -> None:
        scores = {
            "clean": evaluation.clean,
            **evaluation.robust,
            "worst case": evaluation.worst_case,
        }
        self.line(
            f"final  trial {trial.number} on {evaluation.images} validation images: "
            f"{figures(scores)}"
        )

    def task(self, description: str, total: int) -> TaskID:
        return self.progress.add_task(plain(description), total=total)

    def progressed(self, task: TaskID, done: int) -> None:
        self.progress.update(task, completed=done)

    def drop(self, task: TaskID) -> None:
        self.progress.remove_task(task)


def _score(name: str, value: float) -> str:
    share = name.startswith("val_") or name == "train_accuracy"
    return percent(value) if share else f"{value:.4g}"


def _scores(scores: dict[str, float]) -> str:
    return "  ".join(f"{name} {_score(name, value)}" for name, value in scores.items())


def _values(trial: Trial) -> str:
    def short(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else json.dumps(value).strip('"')

    return "  ".join(f"{path}={short(v)}" for path, v in trial.values.items()) or "as the recipe"


def expert_line(experts: dict[str, float]) -> str:
    return (
        f"experts: {experts['trained']:.0f} trained, {experts['found']:.0f} times found in the "
        f"store, which saved {experts['seconds_saved']:.0f} s of training"
    )


def baseline_line(answer: dict[str, Any]) -> str:
    """Says plainly whether the search was worth it."""
    best, own = answer["best"], answer["baseline"]
    if own is None:
        return "the recipe itself (trial 0) finished no epoch: there is nothing to compare with"
    if best["trial"] == 0:
        return "no trial beats the recipe itself (trial 0) on validation"
    ours = best["metrics"]["validation"]
    verb = "beats" if own["beaten"] else "does not beat"
    chance = f"p = {own['p_value']:.2g}" + (", within chance" if own["p_value"] > 0.05 else "")
    return (
        f"trial {best['trial']} {verb} the recipe itself (trial 0) on {own['images']} validation "
        f"images: worst case {percent(ours['worst_case'])} against {percent(own['worst_case'])} "
        f"({chance}), clean {percent(ours['clean'])} against {percent(own['clean'])}"
    )
