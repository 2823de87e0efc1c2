"""The experiment that runs go to: MLFLOW_EXPERIMENT_NAME, MLFLOW_EXPERIMENT_ID, or `fmoe`.

Its kind says that models are trained in it. MLflow's pages went by that until the browser's own
choice came to decide (3.17: GenAI, unless the address says `workflowType`); see `page`.
"""

from __future__ import annotations

import os

from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from fmoe.errors import UserError
from fmoe.tracking import own
from fmoe.tracking.store import gist, is_own, shown, store_errors

DEFAULT = "fmoe"
KIND, TRAINING = "mlflow.experimentKind", "custom_model_development"
GUESSED = "_inferred"
"""Ends a kind that MLflow's pages made up."""
LOCAL = "http://127.0.0.1:5000"
"""Where `fmoe ui` is, unless it is told otherwise."""
VIEW = "workflowType=machine_learning"


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
    """Made where it is not there yet; in our own store it is of the right kind from here on, on a
    server it stays what it is. Raises `UserError`, also for one that is deleted."""
    experiment = find(store)
    if experiment is None:
        try:
            place = own.artifacts() if is_own() else None
            number = store.create_experiment(name(), place, tags={KIND: TRAINING})
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
    kind = experiment.tags.get(KIND, "")
    if is_own() and (not kind or kind.endswith(GUESSED)):
        with store_errors():
            store.set_experiment_tag(experiment.experiment_id, KIND, TRAINING)
    return experiment


def page(store: MlflowClient, run_id: str) -> str:
    """Where a run is looked at, in the view for the training of models; for a database, what serves
    it."""
    number = store.get_run(run_id).info.experiment_id
    place = f"/#/experiments/{number}/runs/{run_id}?{VIEW}"
    if store.tracking_uri.startswith("http"):
        return f"{shown()}{place}"
    return f"fmoe ui, then {LOCAL}{place}"
