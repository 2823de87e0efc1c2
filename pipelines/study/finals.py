"""The choice among a study's best trials, on all validation images under the full protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fmoe import assembly
from fmoe.config import Config
from fmoe.data import Split
from fmoe.data.facts import Identity
from fmoe.errors import TrainingFailed
from fmoe.evaluation import Evaluation, Settings
from fmoe.models.mixture import Mixture
from fmoe.on_ray import evaluate
from fmoe.on_ray.session import Resources
from fmoe.training import joint, selection
from fmoe.training.calibration import deployed
from fmoe.tuning.search_space import Space
from fmoe.tuning.trials import Ledger, Trial, pareto, ranked
from pipelines.study.display import StudyDisplay
from pipelines.study.log import StudyLog


@dataclass(frozen=True)
class Finals:
    """Judges trials by the weights that their folders keep."""

    space: Space
    ledger: Ledger
    data: Identity
    resources: Resources
    display: StudyDisplay

    def config(self, trial: Trial) -> Config:
        return self.space.config(trial.values)

    def entrants(self, trials: Sequence[Trial]) -> list[Trial]:
        """The best few, and the recipe as it stands."""
        order = ranked(trials, self.space.study.metrics)
        top = order[: self.space.study.final.top]
        own = [t for t in order if t.number == 0 and self.space.study.has_baseline and t not in top]
        return top + own

    def worth_keeping(self, trials: Sequence[Trial]) -> set[int]:
        """Numbers of those that may yet be finalists: a better trial can make a front smaller, and
        then the best of the rest move up."""
        name, direction = next(iter(self.space.study.metrics.items()))
        by_the_first = ranked(trials, {name: direction})[: self.space.study.final.top]
        front = pareto(trials, self.space.study.metrics)
        return {trial.number for trial in (*self.entrants(trials), *by_the_first, *front)}

    def choose(
        self, trials: Sequence[Trial], val: Split, log: StudyLog
    ) -> tuple[Trial, dict[int, Evaluation]]:
        """The best of the finalists, and what each was judged as."""
        finalists = self.entrants([trial for trial in trials if self.kept(trial)])
        if not finalists:
            reasons = sorted({trial.error for trial in trials if trial.error})
            because = "; ".join(reasons) or "the study's time (--minutes) was too short for one"
            raise TrainingFailed(f"no trial finished an epoch: {because}")
        evaluations = {}
        for trial in finalists:
            evaluations[trial.number] = self.evaluate(trial, val, "validation")
            log.evaluated(trial, "final_val", evaluations[trial.number])
            self.display.final(trial, evaluations[trial.number])
        clean = next(iter(self.space.study.metrics)) == "val_clean"

        def score(trial: Trial) -> tuple[bool, float]:
            """Flagged figures come after all others: they may be too high."""
            evaluation = evaluations[trial.number]
            return not evaluation.flags, evaluation.clean if clean else evaluation.worst_case

        return max(finalists, key=score), evaluations

    def evaluate(self, trial: Trial, split: Split, where: str) -> Evaluation:
        wanted, final = self.config(trial).evaluate, self.space.study.final
        attacks = tuple(dict.fromkeys([*final.attacks, *wanted.attacks]))
        bar = self.display.task(f"trial {trial.number}, {where}", len(split))
        chosen = deployed(self.config(trial), trial.history[self.best_epoch(trial)])
        evaluation = evaluate.evaluate(
            self.model(trial),
            assembly.MixtureSubject(chosen, self.data.facts),
            split,
            Settings(attacks, wanted.threat, wanted.batch_size, self.config(trial).seed),
            resources=self.resources,
            progress=lambda done, _: self.display.progressed(bar, done),
        )
        self.display.drop(bar)
        return evaluation

    def model(self, trial: Trial) -> Mixture:
        run = self.ledger.trial_folder(trial.number)
        return joint.trained(self.config(trial), run, self.data, self.best_epoch(trial))

    def best_epoch(self, trial: Trial) -> int:
        """The best by validation of which the weights are kept."""
        attack = self.config(trial).joint.attack
        return max(self.kept(trial), key=lambda e: selection.selection(trial.history[e], attack))

    def kept(self, trial: Trial) -> list[int]:
        """Epochs of its history of which there are weights."""
        folder = self.ledger.trial_folder(trial.number)
        epochs = joint.checkpoints(folder, self.config(trial), self.data).epochs()
        return [epoch for epoch in epochs if epoch < len(trial.history)]
