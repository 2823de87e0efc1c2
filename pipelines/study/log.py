"""A study's trials in MLflow: a child run each, under the study's."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from types import TracebackType

from fmoe.errors import UserError
from fmoe.evaluation import Evaluation
from fmoe.model_card import Figures
from fmoe.on_ray.session import driven_by
from fmoe.tracking import Tracker, tags
from fmoe.tuning.trials import Trial
from pipelines.study import story

logger = logging.getLogger(__name__)
ENDS = {"finished": "FINISHED", "pruned": "KILLED", "stopped": "KILLED", "failed": "FAILED"}


class StudyLog:
    """A server that is away costs nothing: what it missed is logged when it is back.

    However the block ends, no child is left RUNNING.
    """

    def __init__(self, study: str, parent: Tracker, labels: Mapping[str, str] | None = None):
        """labels: tags that every child has, too."""
        self.study, self.parent, self.labels = study, parent, dict(labels or {})
        self.trackers: dict[int, Tracker] = {}
        self.unsettled: dict[int, Trial] = {}
        self.figures: dict[int, tuple[str, Figures | None]] = {}

    def __enter__(self) -> StudyLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        for number, trial in list(self.unsettled.items()):  # Tune's thread may still run
            if number in self.trackers:
                self.trackers[number].finish(ENDS.get(trial.status, "KILLED"))

    def tracker(self, trial: Trial) -> Tracker:
        """Raises `UserError` where the store is away."""
        if trial.number not in self.trackers:
            labels = {
                "mlflow.parentRunId": self.parent.run_id,
                tags.KIND: "trial",
                tags.STUDY: self.study,
                tags.TRIAL: str(trial.number),
                **tags.ours(driven_by()),
                **self.labels,
            }
            values = {path: json.dumps(value).strip('"') for path, value in trial.values.items()}
            name = f"{self.study}-{trial.number:04d}"
            # a killed driver may have made the run and not have kept its id
            run_id = trial.run_id or self.parent.child({tags.TRIAL: str(trial.number)})
            tracker = Tracker.start(name, values, labels, run_id)
            if tracker.note:
                logger.warning("%s", tracker.note)
            self.trackers[trial.number], trial.run_id = tracker, tracker.run_id
        return self.trackers[trial.number]

    def resume(self, ended: Sequence[Trial]) -> list[Trial]:
        """Ends the runs of trials that had ended when the driver was killed, if it had no time to,
        and makes those that MLflow no longer has: gives these trials, whose `run_id` is another.

        Raises `UserError` where the store is away.
        """
        known = self.parent.ended_children()
        lacking = [trial for trial in ended if trial.run_id not in known]
        before = [trial.run_id for trial in lacking]
        for trial in lacking:
            self.ended(trial)
        return [trial for trial, run_id in zip(lacking, before, strict=True)
                if trial.run_id != run_id]  # fmt: skip

    def begun(self, trial: Trial) -> None:
        self.unsettled[trial.number] = trial
        self._send(trial)

    def reported(self, trial: Trial) -> None:
        self._send(trial)

    def ended(self, trial: Trial) -> None:
        self.unsettled[trial.number] = trial
        self._send(trial)

    def evaluated(self, trial: Trial, where: str, evaluation: Evaluation) -> None:
        figures = {f"{where}_{key}": value for key, value in evaluation.figures.items()}
        self.tracker(trial).log(figures, len(trial.history) - 1)
        self.figures[trial.number] = where, Figures.of(evaluation.to_json())
        self.ended(trial)  # again: to open the run of a trial of an earlier try makes it RUNNING

    def _send(self, trial: Trial) -> None:
        """Everything that is known of the trial; what is logged already is left out."""
        try:
            tracker = self.tracker(trial)
        except UserError as error:
            logger.warning("%s; tried again later", error)
            return
        for index, metrics in enumerate(trial.history):
            tracker.log(metrics, index)
        if trial.error:
            tracker.tag(tags.ERROR, trial.error)
        if trial.status in ENDS:
            tracker.describe(story.of_trial(self.study, trial, self.figures.get(trial.number)))
        if trial.status in ENDS and tracker.finish(ENDS[trial.status]):
            self.unsettled.pop(trial.number, None)

    def settle(self) -> None:
        """Waits for a server that is away, then sends what it missed."""
        self.parent.settle()
        for trial in list(self.unsettled.values()):
            self._send(trial)
