"""What `fmoe tune --json` says of trials."""

from __future__ import annotations

from typing import Any

from fmoe.evaluation import Evaluation, mcnemar
from fmoe.tuning.trials import Trial

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


def against(best: Trial, evaluations: dict[int, Evaluation]) -> dict[str, Any] | None:
    """The recipe as it stands, under the same attacks on the same validation images.

    p_value: that the best of the finalists differs from it so much by chance: McNemar's, times the
    finalists that it was chosen from (Bonferroni). None where it has finished no epoch.
    """
    if 0 not in evaluations:
        return None
    ours, own = evaluations[best.number], evaluations[0]
    return {
        **own.figures,
        "images": own.images,
        "beaten": ours.worst_case > own.worst_case,
        "p_value": min(1.0, mcnemar(ours.survivors, own.survivors) * max(1, len(evaluations) - 1)),
    }


def expert_totals(trials: list[Trial]) -> dict[str, float]:
    keys = ("trained", "found", "seconds_trained", "seconds_saved")
    return {key: sum(trial.experts.get(key, 0) for trial in trials) for key in keys}


def overhead(trials: list[Trial]) -> dict[str, float]:
    """Mean seconds that a trial spent otherwise than in training once it had a process, besides in
    waiting for experts that another trial was training, and before it had one."""
    spent, waited, before = [], [], []
    for trial in trials:
        if trial.ended is None or trial.status == "failed" or trial.changes:
            continue
        training_seconds = sum(epoch["seconds"] for epoch in trial.history)
        experts = trial.experts.get("seconds_trained", 0.0)
        waiting = max(0.0, trial.experts.get("seconds", 0.0) - experts)
        spent.append(trial.ended - trial.started - training_seconds - experts - waiting)
        waited.append(waiting)
        before.append(trial.started - trial.asked)
    count = max(1, len(spent))
    return {
        "per_trial": sum(spent) / count,
        "waiting": sum(waited) / count,
        "startup": sum(before) / count,
    }
