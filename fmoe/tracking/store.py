"""The MLflow store: SQLite and a folder in FMOE_HOME, or what `MLFLOW_TRACKING_URI` names.

A server that is away when a run starts fails it at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

# MLflow 3.18 calls it deprecated in favour of MLFLOW_ALLOW_MODEL_CODE_EXECUTION, which is another
# thing: at `false` that one refuses every pyfunc, ours, too, since an MLmodel file names the module
# that loads it. This one refuses pickles alone, there as well
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
import requests
from alembic.util import CommandError
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.tracking._tracking_service import utils
from sqlalchemy.exc import SQLAlchemyError

from fmoe.errors import UserError, first_line
from fmoe.tracking import named, own


def store_uri() -> str:
    return own.uri() if is_own() else os.environ["MLFLOW_TRACKING_URI"]


def is_own() -> bool:
    """Whether the store is the one in `FMOE_HOME`, by default or by its URI."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    return not uri or uri == f"sqlite:///{own.folder()}/{own.DATABASE}"


def shown() -> str:
    """The store's URI for messages, without a user's name and password."""
    if is_own():
        return f"sqlite:///{own.folder()}/{own.DATABASE}"
    return named.shown(os.environ["MLFLOW_TRACKING_URI"])


def read_only() -> bool:
    """Whether it is known that nothing can be recorded."""
    return is_own() and own.read_only()


def client() -> MlflowClient:
    """A client of the store, which is made where it is ours. Raises `UserError` if it is away."""
    for name in ("mlflow", "alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # MLflow keeps in the process where a run's files are, by the run's id alone: of a home that was
    # moved, or of two that are copies, it would go on writing to the one that it saw first
    utils._artifact_repos_cache.clear()
    if not is_own():
        uri = os.environ["MLFLOW_TRACKING_URI"]
        named.check(uri)
        return _answering(uri)
    with own.opening():
        return _answering(own.uri())


def writing() -> MlflowClient:
    """A client to record with. Raises `UserError` also where the store can only be read."""
    if is_own():
        own.check_writable()
    return client()


def _answering(uri: str) -> MlflowClient:
    """One that has given an answer: MLflow makes or refuses a database when it is first asked."""
    try:
        with store_errors():
            store = MlflowClient(uri)
            if not uri.startswith("http"):  # a server has answered
                store.search_experiments(max_results=1)
    except OSError as error:
        raise UserError(f"MLflow store {shown()}: cannot be made ({first_line(error)})") from None
    return store


@contextlib.contextmanager
def selected() -> Iterator[None]:
    """While the block runs MLflow's own functions use this store: it keeps the choice in a variable
    of the environment, too, which would outlive a change of `FMOE_HOME`."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(store_uri())
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """What the store refuses is the user's to know, in one line."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, CommandError) as error:
        raise UserError(f"MLflow store {shown()}: {gist(error)}") from None
    except (requests.RequestException, TimeoutError) as error:  # files of models and evaluations
        raise UserError(f"MLflow store {shown()}: {type(error).__name__}") from None
    except ImportError as error:
        raise UserError(f"MLflow store {shown()}: needs {named.install(error)}") from None


def gist(error: Exception) -> str:
    """An error of MLflow, with the remedy where we know one."""
    text = str(error)
    schema = re.search(r"found version (\w+)|revision identified by '(\w+)'", text)
    if schema:
        return _other_schema(schema[1] or schema[2])
    refused = getattr(error, "error_code", None) in ("UNAUTHENTICATED", "PERMISSION_DENIED")
    if refused or re.search(r"error code 40[13]\b", text):
        return ("asks for another user: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
                "or MLFLOW_TRACKING_TOKEN")  # fmt: skip
    if "unsupported URI" in text:
        return f"unknown kind of store: expected {named.KINDS}"
    return own.refusal(error)


def _other_schema(revision: str) -> str:
    versions = Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions"
    if any(versions.glob(f"{revision}_*.py")):
        return (f"was made by an older MLflow than {mlflow.__version__}: make a backup, then "
                f"`mlflow db upgrade {shown()}`")  # fmt: skip
    return f"was made by a newer MLflow than {mlflow.__version__}: pip install --upgrade mlflow"
