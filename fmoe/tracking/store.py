"""The MLflow store: one SQLite file and an artifact folder under `FMOE_HOME`, or what
`MLFLOW_TRACKING_URI` names. A server that is away when a run starts fails it at once."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import requests
from filelock import FileLock
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from fmoe.errors import PASSWORD, UserError, first_line
from fmoe.paths import home

EXPERIMENT = "fmoe"


def store_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home()}/mlflow/mlflow.db"


def shown() -> str:
    """The store's URI for messages, without a user's name and password."""
    return PASSWORD.sub("//", store_uri())


def client() -> MlflowClient:
    """A client of the store, which is made where it is ours. Raises `UserError` if it is away."""
    for name in ("mlflow", "alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    uri = store_uri()
    if uri.startswith(("http://", "https://")):
        _check_server(uri)
        return MlflowClient(uri)
    own = not os.environ.get("MLFLOW_TRACKING_URI")
    folder = home() / "mlflow"
    if own:
        folder.mkdir(parents=True, exist_ok=True)
    # several processes that make a fresh SQLite store at once leave it broken
    with FileLock(folder / ".lock") if own else contextlib.nullcontext(), store_errors():
        store = MlflowClient(uri)
        if store.get_experiment_by_name(EXPERIMENT) is None:
            store.create_experiment(EXPERIMENT, (folder / "artifacts").as_uri() if own else None)
    return store


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """What the store refuses is the user's to know, in one line."""
    try:
        yield
    except MlflowException as error:
        raise UserError(f"MLflow store {shown()}: {first_line(error)}") from None
    except requests.RequestException as error:  # files of models and evaluations
        raise UserError(f"MLflow store {shown()}: {type(error).__name__}") from None


def _check_server(uri: str) -> None:
    """Without mlflow's retries. TLS as mlflow's variables have it."""
    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    try:
        code = requests.get(
            f"{uri.rstrip('/')}/health",
            timeout=10,
            verify=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or not insecure,
            cert=os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH"),
        ).status_code
    except (requests.RequestException, OSError) as error:
        raise UserError(
            f"MLflow server {shown()} is away ({type(error).__name__}): "
            "start it or unset MLFLOW_TRACKING_URI"
        ) from None
    if code >= 400 and code not in (401, 403):  # who asks for credentials is there
        raise UserError(f"MLflow server {shown()} answers {code}")
