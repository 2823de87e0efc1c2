"""The MLflow store: one SQLite file and an artifact folder under `FMOE_HOME`, or what
`MLFLOW_TRACKING_URI` names. A server that is away when a run starts fails it at once."""

from __future__ import annotations

import contextlib
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator

os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from filelock import FileLock
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from fmoe.errors import UserError, first_line
from fmoe.paths import home

EXPERIMENT = "fmoe"


def store_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home()}/mlflow/mlflow.db"


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
        raise UserError(f"MLflow store {store_uri()}: {first_line(error)}") from None


def _check_server(uri: str) -> None:
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=10) as answer:  # noqa: S310
            answer.read()
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return  # there is a server; it asks for the credentials that mlflow itself will send
        raise UserError(f"MLflow server {uri} answers {error.code}") from None
    except (urllib.error.URLError, OSError) as error:
        raise UserError(
            f"MLflow server {uri} is away ({first_line(error)}): "
            "start it or unset MLFLOW_TRACKING_URI"
        ) from None
