"""The experiment that runs go to: MLFLOW_EXPERIMENT_NAME, MLFLOW_EXPERIMENT_ID, or `fmoe`."""

from __future__ import annotations

import os

from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from fmoe.errors import UserError
from fmoe.tracking import own
from fmoe.tracking.store import gist, is_own, shown, store_errors

DEFAULT = "fmoe"


def name() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT


def find(store: MlflowClient) -> Experiment | None:
    """None where there is none of that name. Raises `UserError` for a number that is not there,
    or is another experiment's than the name."""
    number = os.environ.get("MLFLOW_EXPERIMENT_ID")
    with store_errors():
        if not number:
            return store.get_experiment_by_name(name())
    try:
        experiment = store.get_experiment(number)
    except MlflowException as error:
        raise UserError(
            f"MLFLOW_EXPERIMENT_ID {number}: not in {shown()} ({gist(error)}): unset it, or name "
            "one that `mlflow experiments search` shows"
        ) from None
    if os.environ.get("MLFLOW_EXPERIMENT_NAME") not in (None, "", experiment.name):
        raise UserError(
            f"MLFLOW_EXPERIMENT_ID {number}: is {experiment.name}, and MLFLOW_EXPERIMENT_NAME is "
            f"{name()}: unset one of them"
        )
    return experiment


def current(store: MlflowClient) -> Experiment:
    """Made where it is not there yet. Raises `UserError`, also for one that is deleted."""
    experiment = find(store)
    if experiment is None:
        try:
            number = store.create_experiment(name(), own.artifacts() if is_own() else None)
        except MlflowException as error:
            experiment = find(store)  # another process has made it meanwhile
            if experiment is None:
                raise UserError(f"MLFLOW_EXPERIMENT_NAME {name()}: {gist(error)}") from None
            return experiment
        with store_errors():
            return store.get_experiment(number)
    if experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"MLflow experiment {experiment.name} is deleted: `MLFLOW_TRACKING_URI={shown()} "
            f"mlflow experiments restore --experiment-id {experiment.experiment_id}` brings it "
            "back, or set MLFLOW_EXPERIMENT_NAME to another"
        )
    return experiment
