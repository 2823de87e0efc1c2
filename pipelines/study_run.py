"""A study from a request to a registered model: search, finalists, test, registry."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from fmoe import config, data, joint, provenance, search_space, study_plots, tracking, training
from fmoe.config import Config
from fmoe.data import Split, TrainingData
from fmoe.errors import TrainingFailed, UserError
from fmoe.evaluation import Evaluation, Settings, mcnemar
from fmoe.expert_store import ExpertStore
from fmoe.on_ray import evaluate, tune
from fmoe.on_ray.placement import sweeping
from fmoe.on_ray.session import driven_by, session
from fmoe.on_ray.shared_data import SharedData
from fmoe.on_ray.suggest import Suggestions
from fmoe.on_ray.trials import Setting
from fmoe.on_ray.tune import Share
from fmoe.paths import home
from fmoe.search_space import Space
from fmoe.storage import Damaged, Folder
from fmoe.study import Ledger, Trial, pareto, ranked
from fmoe.tracking import Tracker, finishing
from pipelines.publish import publish, write_figure
from pipelines.study_display import StudyDisplay, baseline_line, expert_line
from pipelines.study_log import StudyLog
from pipelines.training_run import checked, only_one


@dataclass(frozen=True)
class Request:
    """What the command line asked for; budget, scheduler and searcher instead of the file's."""

    file: str
    overrides: tuple[str, ...]
    budget: dict[str, Any]
    scheduler: str | None
    searcher: str | None
    workers: int
    gpus: float | None
    name: str | None
    resume: bool
    storage: str | None
    expert_store: str | None
    register_as: str | None
    data_dir: Path | None


def run(request: Request) -> dict[str, Any]:
    """Gives what `fmoe tune --json` prints. Raises `UserError` for bad input."""
    space = search_space.load(
        request.file,
        request.overrides,
        budget=request.budget,
        scheduler=request.scheduler,
        searcher=request.searcher,
    )
    identity = fingerprint(space, request.workers)
    name = checked(request.name or f"{Path(request.file).stem}-{identity[:8]}")
    storage = Folder.at(request.storage or home())
    folder = storage / "studies" / name
    store = ExpertStore(
        Folder.at(request.expert_store) if request.expert_store else storage / "experts"
    )
    if request.workers > 1 and space.study.scheduler.kind == "pbt":
        raise UserError(
            f"--workers-per-trial {request.workers}: pbt works with one worker a trial only; under "
            "Ray Train a trial cannot take over another's weights"
        )
    with only_one(folder):
        known = claim(folder, space, identity, name, request.resume)
        if known.get("result") is not None:
            return dict(known["result"])
        wanted = space.base.data
        loaded = data.load_training(
            wanted.name,
            request.data_dir,
            val_images=wanted.val_images,
            train_images=wanted.train_images,
        )
        tracking.client()  # a server that is away fails the study now
        shared = SharedData.of(loaded)
        with session(1, shared.nbytes), sweeping():
            share = Share.of_cluster(request.workers, request.gpus)
            tracker = start_tracking(folder, space, name, loaded, share, known.get("run_id"))
            folder.write_json("study.json", {**known, "run_id": tracker.run_id})
            with finishing(tracker), StudyDisplay(space) as display:
                ledger = Ledger(folder.patient())
                setting = Setting(
                    ray.put(shared),
                    loaded.train_digest,
                    store.folder.patient(),
                    (folder / "trials").patient(),
                    share.resources,
                    share.workers,
                    exchange=space.study.scheduler.kind == "pbt",
                )
                study = StudyRun(
                    space, name, ledger, setting, share, loaded, tracker, display, request
                )
                return study.complete()


def fingerprint(space: Space, workers: int) -> str:
    """Of everything but the budget: a study may be given more trials."""
    study = space.study.model_dump(mode="json", exclude={"budget", "recipe", "set"})
    return config.fingerprint({"study": study, "base": space.base.plain(), "workers": workers})


def claim(folder: Folder, space: Space, identity: str, name: str, resume: bool) -> dict[str, Any]:
    """The study's file, new or found; with `result` where there is nothing left to do."""
    try:
        if not folder.exists("study.json"):
            if resume:
                raise UserError(f"--resume: there is no study {name} in {folder.uri}")
            known = {
                "name": name,
                "identity": identity,
                "file": space.source,
                "space": space.study.model_dump(mode="json"),
                "base": space.base.plain(),
            }
            folder.write_json("study.json", known)
            if folder.local is not None:
                folder.local.chmod(0o700)  # what a resume goes by
            return known
        known = folder.read_json("study.json")
        trials = Ledger(folder).trials()
        ended = sum(trial.status != "running" for trial in trials)
        if known.get("identity") != identity:
            raise UserError(f"{folder.uri}: is a study of other settings; give another --name")
        if not resume:
            raise UserError(
                f"study {name} is there with {ended} of {space.study.budget.trials} trials: "
                "--resume goes on with it, --name starts another"
            )
        if folder.exists("result.json") and ended >= space.study.budget.trials:
            return {**known, "result": folder.read_json("result.json")}
    except Damaged as error:
        raise UserError(str(error)) from None
    return known


def start_tracking(
    folder: Folder, space: Space, name: str, loaded: TrainingData, share: Share, run_id: str | None
) -> Tracker:
    study = space.study
    params = {
        "recipe": study.recipe,
        "metrics": str(study.metrics),
        "budget.trials": str(study.budget.trials),
        "budget.minutes": str(study.budget.minutes),
        "scheduler": study.scheduler.model_dump_json(),
        "searcher": study.searcher.model_dump_json(),
        "workers_per_trial": str(share.workers),
        **{f"space.{path}": str(value) for path, value in study.space.items()},
    }
    tags = {
        "fmoe.kind": "study",
        "fmoe.study": name,
        "fmoe.recipe": study.recipe,
        "fmoe.data": loaded.name,
        "fmoe.train_digest": loaded.train_digest,
        "fmoe.git_revision": provenance.git_revision(),
        **{f"fmoe.{key}": value for key, value in provenance.hardware().items()},
        **{f"fmoe.{key}": value for key, value in driven_by().items()},
    }
    tracker = Tracker.start(name, {} if run_id else params, tags, run_id)
    if run_id is None:
        tracker.log_text("space.yaml", Path(space.source).read_text())
        tracker.log_text("base.yaml", space.base.to_yaml())
        tracker.log_text("environment.txt", provenance.packages())
    return tracker


@dataclass
class StudyRun:
    """Search, finalists, test; a listener of its trials meanwhile."""

    space: Space
    name: str
    ledger: Ledger
    setting: Setting
    share: Share
    data: TrainingData
    tracker: Tracker
    display: StudyDisplay
    request: Request
    trials: dict[int, Trial] = field(default_factory=dict)

    def complete(self) -> dict[str, Any]:
        begin = time.monotonic()
        for trial in self.ledger.trials():
            self.trials[trial.number] = trial
        seconds: dict[str, float] = {}
        with StudyLog(self.name, self.tracker) as self.log:
            self.search()
            seconds["search"] = time.monotonic() - begin
            trials = self.ordered()
            best, found = self.finals(trials)
            seconds["finals"] = time.monotonic() - begin - sum(seconds.values())
            answer = self.result(trials, best, found)
            seconds["test"] = time.monotonic() - begin - sum(seconds.values())
            self.log.settle()
        answer["seconds"] = {key: round(value, 1) for key, value in seconds.items()}
        self.ledger.folder.write_json("result.json", answer)
        return answer

    def ordered(self) -> list[Trial]:
        return [self.trials[number] for number in sorted(self.trials)]

    # --- the search

    def search(self) -> None:
        known = self.ordered()
        again = [trial for trial in known if trial.status == "running"]
        done = [trial for trial in known if trial.status != "running"]
        earlier = [epoch["at"] for trial in known for epoch in trial.history]
        self.start = time.monotonic() - max(earlier, default=0.0)
        budget = self.space.study.budget
        suggestions = Suggestions(self.space, done, again, budget.trials)
        self.display.begin(suggestions.more, len(done), self.share.at_once)
        tune.search(
            self.space,
            suggestions,
            done,
            self.setting,
            self.share,
            self,
            seconds=budget.minutes * 60 if budget.minutes else None,
            over=self.over,
        )

    def config(self, trial: Trial) -> Config:
        return self.space.config(trial.values)

    def over(self, trial: Trial) -> bool:
        phase = self.config(trial).joint
        return training.over(phase, trial.history, phase.attack)

    def begun(self, trial: Trial) -> None:
        self.trials[trial.number] = trial
        self.ledger.save(trial)  # its values, before its run is made
        self.log.begun(trial)
        self.ledger.save(trial)
        self.display.update(self.ordered())

    def reported(self, trial: Trial) -> None:
        trial.history[-1]["at"] = time.monotonic() - self.start
        self.ledger.save(trial)
        self.log.reported(trial)
        self.display.update(self.ordered())

    def ended(self, trial: Trial) -> None:
        self.trials[trial.number] = trial  # one that never began, too
        self.ledger.save(trial)
        self.log.ended(trial)
        self.display.ended(trial, self.ordered())
        self.ledger.write_table(self.ordered())
        kept = {finalist.number for finalist in self.finalists(self.ordered())}
        for other in self.ordered():
            if other.status != "running" and other.number not in kept:
                (self.ledger.trial_folder(other.number) / "joint").delete()

    # --- the choice

    def finalists(self, trials: list[Trial]) -> list[Trial]:
        """The best few, and the recipe as it stands."""
        order = ranked(trials, self.space.study.metrics)
        top = order[: self.space.study.final.top]
        own = [t for t in order if t.number == 0 and self.space.study.has_baseline and t not in top]
        return top + own

    def finals(self, trials: list[Trial]) -> tuple[Trial, dict[int, Evaluation]]:
        """Judges the finalists on all validation images; the best of them."""
        finalists = self.finalists(trials)
        if not finalists:
            reasons = {trial.error for trial in trials if trial.error}
            raise TrainingFailed(f"no trial finished an epoch: {'; '.join(sorted(reasons))}")
        found = {}
        for trial in finalists:
            found[trial.number] = self.evaluate(trial, self.data.val, "validation")
            self.log.evaluated(trial, "final_val", found[trial.number])
            self.display.final(trial, found[trial.number])
        clean = next(iter(self.space.study.metrics)) == "val_clean"

        def score(trial: Trial) -> float:
            evaluation = found[trial.number]
            return evaluation.clean if clean else evaluation.worst_case

        return max(finalists, key=score), found

    def evaluate(self, trial: Trial, split: Split, where: str) -> Evaluation:
        wanted, final = self.config(trial).evaluate, self.space.study.final
        attacks = tuple(dict.fromkeys([*final.attacks, *wanted.attacks]))
        bar = self.display.task(f"trial {trial.number}, {where}", len(split))
        found = evaluate.evaluate(
            self.model(trial),
            self.config(trial),
            split,
            Settings(attacks, wanted.eps, wanted.batch_size, self.config(trial).seed),
            resources=self.share.resources,
            progress=lambda done, _: self.display.progressed(bar, done),
        )
        self.display.drop(bar)
        return found

    def model(self, trial: Trial) -> Any:
        run = self.ledger.trial_folder(trial.number)
        return joint.trained(
            self.config(trial), run, self.data.train_digest, self.best_epoch(trial)
        )

    def best_epoch(self, trial: Trial) -> int:
        """The best by validation of which the weights are kept."""
        chosen = self.config(trial)
        folder, digest = self.ledger.trial_folder(trial.number), self.data.train_digest
        kept = joint.checkpoints(folder, chosen, digest).epochs()

        def score(epoch: int) -> float:
            return training.selection(trial.history[epoch], chosen.joint.attack)

        return max((epoch for epoch in kept if epoch < len(trial.history)), key=score)

    def result(
        self, trials: list[Trial], best: Trial, found: dict[int, Evaluation]
    ) -> dict[str, Any]:
        """The winner on the test images, which are read here for the first time; registered."""
        chosen = self.config(best)
        whole = data.load(
            chosen.data.name,
            self.request.data_dir,
            val_images=chosen.data.val_images,
            train_images=chosen.data.train_images,
        )
        test = whole.test[: chosen.evaluate.images]
        judged = self.evaluate(best, test, "test")
        self.log.evaluated(best, "test", judged)
        uri, digest = publish(
            self.ledger.trial_folder(best.number),
            self.log.tracker(best),
            chosen,
            whole,
            best.history,
            self.best_epoch(best),
            judged,
            self.request.register_as,
            {"fmoe.study": self.name, "fmoe.trial": str(best.number)},
        )
        self.log.ended(best)  # again: logging a model has set its run's status
        self.plots(trials)
        validation = {str(number): evaluation.figures for number, evaluation in found.items()}
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
                "epoch": self.best_epoch(best),
                "model_uri": uri,
                "digest": digest,
                "run_id": best.run_id,
            },
            "finals": validation,
            "front": [trial.number for trial in pareto(trials, metrics)],
            "baseline": against(best, found) if self.space.study.has_baseline else None,
            "experts": expert_totals(trials),
            "overhead": overhead(trials),
        }
        self.tracker.log_json("result.json", answer)
        figures = {f"best_{k}": v for k, v in found[best.number].figures.items()}
        self.tracker.log({**figures, "best_trial": best.number}, 0)
        self.tracker.log({f"test_{k}": v for k, v in judged.figures.items()}, 0)
        self.display.line(expert_line(answer["experts"]))
        if self.space.study.has_baseline:
            self.display.line(baseline_line(answer))
        return answer

    def plots(self, trials: list[Trial]) -> None:
        figures = study_plots.charts(self.space, trials)
        for title, figure in figures.items():
            write_figure(self.ledger.folder, title, figure)
        self.tracker.log_figures(figures)


STATUSES = ("finished", "pruned", "stopped", "failed")


def describe(trial: Trial, metrics: Any) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "status": trial.status,
        "epochs": len(trial.history),
        "values": trial.values,
        "metrics": trial.figures(metrics),
        "error": trial.error,
        "run_id": trial.run_id,
    }


def against(best: Trial, found: dict[int, Evaluation]) -> dict[str, Any] | None:
    """The recipe as it stands, under the same attacks on the same validation images.

    p_value: that the two differ so much by chance. None where it has finished no epoch.
    """
    if 0 not in found:
        return None
    ours, own = found[best.number], found[0]
    return {
        **own.figures,
        "images": own.images,
        "beaten": ours.worst_case > own.worst_case,
        "p_value": mcnemar(ours.survivors, own.survivors),
    }


def expert_totals(trials: list[Trial]) -> dict[str, float]:
    keys = ("trained", "found", "seconds_trained", "seconds_saved")
    return {key: sum(trial.experts.get(key, 0) for trial in trials) for key in keys}


def overhead(trials: list[Trial]) -> dict[str, float]:
    """Mean seconds a trial spent otherwise than in training, and of them in waiting for experts
    that another trial was training."""
    spent, waited = [], []
    for trial in trials:
        if trial.ended is None or trial.status == "failed":
            continue
        training_seconds = sum(epoch["seconds"] for epoch in trial.history)
        experts = trial.experts.get("seconds_trained", 0.0)
        spent.append(trial.ended - trial.started - training_seconds - experts)
        waited.append(max(0.0, trial.experts.get("seconds", 0.0) - experts))
    count = max(1, len(spent))
    return {"per_trial": sum(spent) / count, "waiting": sum(waited) / count}
