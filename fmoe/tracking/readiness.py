"""What would keep a run from being recorded, found out before anything is trained."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from fmoe.deadline import within
from fmoe.errors import UserError, first_line
from fmoe.paths import writable
from fmoe.tracking import boards, experiments, named
from fmoe.tracking.store import shown, writing

ANSWER_SECONDS = 25.0
LIBRARIES = {
    "s3": ("boto3", "boto3"),
    "r2": ("boto3", "boto3"),
    "b2": ("boto3", "boto3"),
    "gs": ("google.cloud.storage", "google-cloud-storage"),
    "wasbs": ("azure.storage.blob", "azure-storage-blob"),
    "abfss": ("azure.storage.filedatalake", "azure-storage-file-datalake"),
    "sftp": ("pysftp", "pysftp"),
}
"""By the scheme of an artifact location: what MLflow imports when the first file is written."""


def check() -> None:
    """Raises `UserError` where runs, their files or models could not be recorded."""
    boards.folder()
    store = writing()
    try:  # a server that is healthy and silent would be waited for six minutes
        experiment = within(ANSWER_SECONDS, lambda: experiments.current(store))
    except TimeoutError as error:
        raise UserError(f"MLflow store {shown()}: {error}") from None
    check_artifacts(str(experiment.artifact_location), experiment.name)


def check_artifacts(location: str, experiment: str) -> None:
    """Raises `UserError` where MLflow could not write there."""
    where = f"MLflow experiment {experiment} keeps files in {named.shown(location)}"
    scheme = urlsplit(location).scheme
    if scheme in LIBRARIES:
        module, package = LIBRARIES[scheme]
        try:
            importlib.import_module(module)
        except ImportError:
            raise UserError(
                f"{where}, which needs {module}, which is not installed: pip install {package}"
            ) from None
    elif scheme in ("", "file"):
        path = Path(unquote(urlsplit(location).path))
        with contextlib.suppress(OSError):
            path.mkdir(parents=True, exist_ok=True)  # as MLflow does with the first file
        if not (path.is_dir() and writable(path)):
            raise UserError(f"{where}, which cannot be written from here: name another experiment "
                            "in MLFLOW_EXPERIMENT_NAME")  # fmt: skip
    else:
        try:
            get_artifact_repository(location)
        except (MlflowException, ImportError) as error:
            raise UserError(f"{where}: {first_line(error)}") from None
