"""Whether the store that `MLFLOW_TRACKING_URI` names can be reached, and answers.

Asked before MLflow opens it, which tries again for minutes and has many kinds of errors.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import requests
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from fmoe.deadline import within
from fmoe.errors import PASSWORD, UserError, first_line
from fmoe.paths import writable
from fmoe.tracking.own import refusal

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
KINDS = "http(s)://…, sqlite:///…, postgresql://…, mysql://… or mssql://…"
PACKAGES = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""Of drivers that pip knows by another name than Python does."""
ANSWER_SECONDS = 10.0


def check(uri: str) -> None:
    """Raises `UserError` within half a minute."""
    scheme = re.split(r"[+:]", uri, maxsplit=1)[0].lower()
    if scheme in ("http", "https"):
        _check_server(uri)
    elif scheme in DATABASES:
        _check_database(uri)
    elif not (scheme == "databricks" or "://" in uri) or scheme == "file":
        raise UserError(
            f"MLFLOW_TRACKING_URI {uri}: MLflow no longer keeps runs in plain folders: expected "
            f"{KINDS}; unset it for the store in FMOE_HOME"
        )


def shown(uri: str) -> str:
    """For messages, without a user's name and password."""
    return PASSWORD.sub("//", re.sub(r"//[^/\s]*@", "//", uri))


def _check_server(uri: str) -> None:
    """Without mlflow's retries. TLS as mlflow's variables have it."""
    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")

    def ask() -> int:
        with requests.get(
            f"{uri.rstrip('/')}/health",
            timeout=ANSWER_SECONDS,
            stream=True,
            verify=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or not insecure,
            cert=os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH"),
        ) as answer:
            return answer.status_code

    try:
        code = within(2 * ANSWER_SECONDS, ask)
    except requests.exceptions.SSLError as error:
        raise UserError(
            f"MLflow server {shown(uri)}: its certificate is refused ({_reason(error)}): name its "
            "CA in MLFLOW_TRACKING_SERVER_CERT_PATH"
        ) from None
    except (requests.RequestException, OSError) as error:
        raise UserError(
            f"MLflow server {shown(uri)} is away ({type(error).__name__}): "
            "start it or unset MLFLOW_TRACKING_URI"
        ) from None
    if code >= 400 and code not in (401, 403):  # who asks for credentials is there
        raise UserError(f"MLflow server {shown(uri)} answers {code}: is it one of MLflow?")


def _reason(error: Exception) -> str:
    match = re.search(r"\[SSL[^\]]*\] ([^(']*)", str(error))
    return match[1].strip() if match else type(error).__name__


def _check_database(uri: str) -> None:
    named = f"MLFLOW_TRACKING_URI {shown(uri)}"
    try:
        engine = create_engine(uri)
    except ImportError as error:
        raise UserError(f"{named}: needs the driver {install(error)}") from None
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise UserError(f"{named}: no database ({first_line(error)}): expected {KINDS}") from None
    path = make_url(uri).database
    if engine.dialect.name == "sqlite" and path and path != ":memory:":
        _check_file(Path(path).absolute(), named)
        if not Path(path).exists():
            return

    def ask() -> None:
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                connection.execute(text("SELECT count(*) FROM sqlite_master"))

    try:
        within(2 * ANSWER_SECONDS, ask)
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise UserError(f"{named}: {refusal(cause)}") from None
    except TimeoutError as error:
        raise UserError(f"{named}: {error}") from None
    finally:
        engine.dispose()


def _check_file(path: Path, named: str) -> None:
    if path.is_dir():
        raise UserError(f"{named}: is a folder; expected a file such as {path}/mlflow.db")
    if not path.exists() and not writable(path):
        raise UserError(f"{named}: cannot be made there: name a place that you may write")


def install(error: ImportError) -> str:
    """A missing package and how it is installed."""
    module = (error.name or first_line(error)).partition(".")[0]
    return f"{module}, which is not installed: pip install '{PACKAGES.get(module, module)}'"
