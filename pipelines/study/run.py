"""A study from a request to a registered model: search, finalists, test, registry."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from fmoe import provenance, tracking
from fmoe.config import Config
from fmoe.data import Data, Images, TrainingData
from fmoe.errors import UserError
from fmoe.evaluation import Evaluation
from fmoe.on_ray import shared_storage
from fmoe.on_ray.placement import sweeping
from fmoe.on_ray.session import session
from fmoe.on_ray.shared_data import SharedData
from fmoe.on_ray.tuning import search as tune
from fmoe.on_ray.tuning.share import Share
from fmoe.on_ray.tuning.suggest import Suggestions
from fmoe.on_ray.tuning.trials import TrialInputs
from fmoe.on_ray.workers import Workers
from fmoe.paths import home
from fmoe.plots import study as study_plots
from fmoe.storage.folder import Folder
from fmoe.tracking import Tracker, finishing, tags
from fmoe.training import selection
from fmoe.training.expert_store import ExpertStore
from fmoe.tuning import search_space
from fmoe.tuning.search_space import Space
from fmoe.tuning.trials import Ledger, Trial, elapsed, pareto
from pipelines import origin
from pipelines.data_claim import check_images, claim_data, load, reading
from pipelines.publish import numbered, publish, write_figure
from pipelines.study import story
from pipelines.study.answer import STATUSES, against, describe, expert_totals, overhead
from pipelines.study.claim import (
    claim,
    fingerprint,
    start_tracking,
    still_registered,
    timed_out,
    winner,
)
from pipelines.study.display import StudyDisplay, baseline_line, expert_line
from pipelines.study.finals import Finals
from pipelines.study.log import StudyLog
from pipelines.training.claim import checked, only_one


@dataclass(frozen=True)
class Request:
    """What the command line asked for: its options by their names, as `pipelines.options.asked`
    gives them. trials, minutes, scheduler and searcher instead of the space's own."""

    space: str
    _: KW_ONLY
    overrides: Sequence[str] = ()
    trials: int | None = None
    minutes: float | None = None
    scheduler: str | None = None
    searcher: str | None = None
    workers: int = 1
    gpus: float | None = None
    name: str | None = None
    resume: bool = False
    storage: str | None = None
    expert_store: str | None = None
    register_as: str | None = None
    data_dir: str | None = None

    @property
    def command(self) -> str:
        """That does the same."""
        options = {
            "set": list(self.overrides),
            **self.budget,
            "workers-per-trial": None if self.workers == 1 else self.workers,
            "gpus-per-worker": self.gpus,
            "scheduler": self.scheduler,
            "searcher": self.searcher,
            "name": self.name,
            "storage": self.storage,
            "expert-store": self.expert_store,
            "register-as": self.register_as,
            "data-dir": self.data_dir,
        }
        return origin.command(["fmoe", "tune", self.space], options)

    @property
    def budget(self) -> dict[str, float]:
        given = {"trials": self.trials, "minutes": self.minutes}
        return {key: value for key, value in given.items() if value is not None}

    def checked(self) -> Space:
        """Raises `UserError`, also where the workers of a trial do not go with its settings."""
        space = search_space.load(
            self.space,
            self.overrides,
            budget=self.budget,
            scheduler=self.scheduler,
            searcher=self.searcher,
        )
        scheduler = space.study.scheduler
        if self.workers > 1 and scheduler.takes_over:
            raise UserError(
                f"--workers-per-trial {self.workers}: {scheduler.kind} works with one worker a "
                "trial only; under Ray Train a trial cannot take over another's weights"
            )
        asked = Workers(self.workers, self.workers)
        Workers.of(asked, space.base.parallel, "--workers-per-trial")
        return space

    def place(self, identity: str) -> tuple[str, Folder]:
        """The study's name, and its folder. Raises `UserError`."""
        name = checked(self.name or f"{Path(self.space).stem}-{identity[:8]}")
        return name, Folder.at(self.storage or home()) / "studies" / name


def run(request: Request) -> dict[str, Any]:
    """Gives what `fmoe tune --json` prints. Raises `UserError` for bad input."""
    space = request.checked()
    identity = fingerprint(space, request.workers)
    name, folder = request.place(identity)
    storage = Folder.at(request.storage or home())
    copies = storage / "streamed"
    store = ExpertStore(
        Folder.at(request.expert_store) if request.expert_store else storage / "experts"
    )
    tracking.registry.check_new_name(request.register_as)
    with only_one(folder):
        if not folder.exists("study.json"):
            check_images(space.base, request.data_dir)  # before anything is written
        known = claim(folder, space, identity, name, request.resume)
        ended = folder.exists("result.json")  # perhaps of fewer trials
        with reading(folder, finished="result" in known):
            loaded = load(space.base, request.data_dir, copies, test=ended)
        claim_data(folder, loaded, request.data_dir, winner(folder) if ended else None)
        if "result" in known:
            return still_registered(folder, known["result"])
        tracking.readiness.check()  # a server that is away fails the study now
        shared = SharedData.of(loaded)
        with session(1, shared.nbytes, idle=False), sweeping():
            shared_storage.check(storage, store.folder)
            share = Share.of_cluster(request.workers, request.gpus)
            tracker, texts = start_tracking(
                folder, space, name, loaded, share, known.get("run_id"), request.command
            )
            folder.write_json("study.json", {**known, "run_id": tracker.run_id})
            with finishing(tracker), StudyDisplay(space) as display:
                if tracker.note:
                    display.line(tracker.note)
                display.line(f"to watch it: {tracker.page}")
                tracker.log_texts(texts)
                ledger = Ledger(folder.patient())
                inputs = TrialInputs(
                    shared.put(),
                    loaded.identity,
                    store.folder.patient(),
                    (folder / "trials").patient(),
                    share.resources,
                    share.workers,
                    exchange=space.study.scheduler.takes_over,
                )
                study = StudyRun(
                    space, name, ledger, inputs, share, loaded, tracker, display, request, copies
                )
                return study.complete()


@dataclass
class StudyRun:
    """Search, finalists, test; a listener of its trials meanwhile."""

    space: Space
    name: str
    ledger: Ledger
    inputs: TrialInputs
    share: Share
    data: TrainingData[Images]
    tracker: Tracker
    display: StudyDisplay
    request: Request
    copies: Folder
    trials: dict[int, Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.finals = Finals(
            self.space, self.ledger, self.data.identity, self.share.resources, self.display
        )

    def complete(self) -> dict[str, Any]:
        begin = time.monotonic()
        for trial in self.ledger.trials():
            self.trials[trial.number] = trial
        seconds: dict[str, float] = {}
        made = origin.labels(f"fmoe tune {self.space.source}", provenance.git_revision())
        with StudyLog(self.name, self.tracker, made) as self.log:
            self.search()
            seconds["search"] = time.monotonic() - begin
            trials = self.ordered()
            best, evaluations = self.finals.choose(trials, self.data.val.held(), self.log)
            seconds["finals"] = time.monotonic() - begin - sum(seconds.values())
            answer = self.result(trials, best, evaluations)
            seconds["test"] = time.monotonic() - begin - sum(seconds.values())
            self.log.settle()
        answer["seconds"] = {key: round(value, 1) for key, value in seconds.items()}
        self.ledger.folder.write_json("result.json", answer)
        told = self.judged.to_json(), answer
        self.tracker.describe(story.ended(self.space, self.request.command, *told))
        return answer

    def ordered(self) -> list[Trial]:
        return [self.trials[number] for number in sorted(self.trials)]

    def search(self) -> None:
        known = self.ordered()
        again = [trial for trial in known if trial.status == "running"]
        done = [trial for trial in known if trial.status != "running"]
        for trial in self.log.resume(done):
            self.ledger.save(trial)
        spent, budget = elapsed(known), self.space.study.budget
        self.start = time.monotonic() - spent
        if timed_out(self.space, known):  # what is left to do is the finals
            for trial in again:
                trial.status, trial.ended = "stopped", time.time()
                self.ended(trial)
            return
        suggestions = Suggestions(self.space, done, again, budget.trials)
        self.display.begin(suggestions.more, len(done), self.share.at_once)
        tune.search(
            self.space,
            suggestions,
            done,
            self.inputs,
            self.share,
            self,
            seconds=budget.minutes * 60 - spent if budget.minutes else None,
            over=self.over,
        )

    def config(self, trial: Trial) -> Config:
        return self.space.config(trial.values)

    def over(self, trial: Trial) -> bool:
        phase = self.finals.config(trial).joint
        return selection.over(phase, trial.history, phase.attack)

    def begun(self, trial: Trial) -> None:
        self.trials[trial.number] = trial
        self.ledger.save(trial)  # its values, before its run is made
        self.log.begun(trial)
        self.ledger.save(trial)
        self.display.update(self.ordered())

    def reported(self, trial: Trial) -> None:
        for epoch in trial.history:  # more than one where PBT brought epochs along
            epoch.setdefault("at", time.monotonic() - self.start)
        self.ledger.save(trial)
        self.log.reported(trial)
        self.display.update(self.ordered())

    def ended(self, trial: Trial) -> None:
        self.trials[trial.number] = trial  # one that never began, too
        self.ledger.save(trial)
        self.log.ended(trial)
        self.display.ended(trial, self.ordered())
        self.ledger.write_table(self.ordered())
        over = [other for other in self.ordered() if other.status != "running"]
        kept = self.finals.worth_keeping(over)
        for other in over:
            if other.number not in kept:
                (self.ledger.trial_folder(other.number) / "joint").delete()

    def result(
        self, trials: list[Trial], best: Trial, evaluations: dict[int, Evaluation]
    ) -> dict[str, Any]:
        """The winner on the test images, which are read here for the first time; registered."""
        chosen = self.finals.config(best)
        whole = load(chosen, self.request.data_dir, self.copies, test=True)
        assert isinstance(whole, Data)
        # a search takes hours, and files may have been replaced meanwhile
        claim_data(self.ledger.folder, whole, self.request.data_dir)
        test = whole.test[: chosen.evaluate.images].held()
        judged = self.judged = self.finals.evaluate(best, test, "test")
        self.log.evaluated(best, "test", judged)
        self.log.tracker(best).log_data(whole)
        uri, digest = publish(
            self.ledger.trial_folder(best.number),
            self.log.tracker(best),
            chosen,
            whole,
            best.history,
            self.finals.best_epoch(best),
            judged,
            self.request.register_as,
            {tags.STUDY: self.name, tags.TRIAL: str(best.number)},
        )
        self.log.ended(best)  # again: logging a model has set its run's status
        self.plots(trials)
        validation = {str(number): evaluation.figures for number, evaluation in evaluations.items()}
        metrics = self.space.study.metrics
        answer: dict[str, Any] = {
            "study": self.name,
            "study_dir": self.ledger.folder.uri,
            "run_id": self.tracker.run_id,
            "trials": [describe(trial, metrics) for trial in trials],
            "counts": {s: sum(t.status == s for t in trials) for s in STATUSES},
            "best": {
                "trial": best.number,
                "values": best.values,
                "config": chosen.plain(),
                "metrics": {
                    **(best.figures(metrics) or {}),
                    "validation": validation[str(best.number)],
                    "test": judged.figures,
                },
                "epoch": self.finals.best_epoch(best),
                "model_uri": uri,
                "digest": digest,
                "run_id": best.run_id,
            },
            "finals": validation,
            "front": [trial.number for trial in pareto(trials, metrics)],
            "baseline": against(best, evaluations) if self.space.study.has_baseline else None,
            "experts": expert_totals(trials),
            "overhead": overhead(trials),
        }
        self.tracker.log_json("result.json", answer)
        figures = {f"best_{k}": v for k, v in evaluations[best.number].figures.items()}
        self.tracker.log({**figures, "best_trial": best.number}, 0)
        self.tracker.log({f"test_{k}": v for k, v in judged.figures.items()}, 0)
        self.display.line(expert_line(answer["experts"]))
        if self.space.study.has_baseline:
            self.display.line(baseline_line(answer))
        return answer

    def plots(self, trials: list[Trial]) -> None:
        figures = numbered(study_plots.charts(self.space, trials))
        for title, figure in figures.items():
            write_figure(self.ledger.folder, title, figure)
        self.tracker.log_figures(figures)
