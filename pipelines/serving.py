"""Pages that are served on this machine alone, until Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from fmoe.errors import UserError, first_line
from pipelines.entry import INTERRUPTED
from pipelines.output import show
from pipelines.study.files import StudyFiles

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

HOST = "127.0.0.1"


def check_free(port: int) -> None:
    """Raises `UserError` where something else listens there."""
    with socket.socket() as asked:
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            asked.bind((HOST, port))
        except OSError as error:
            raise UserError(f"--port {port}: {error.strerror}; give another") from None


def pages_of_runs(port: int) -> None:
    """MLflow's, of the store that is selected. Raises `UserError`."""
    from fmoe import tracking

    uri = tracking.store_uri()
    if uri.startswith(("http://", "https://")):
        show(f"MLflow is served at {tracking.shown()} (MLFLOW_TRACKING_URI)")
        return
    check_free(port)
    tracking.client()  # a store that cannot be opened is told in one line
    show(f"MLflow on {tracking.shown()} at http://{HOST}:{port} (Ctrl-C ends it)")
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    command += ["--backend-store-uri", uri, "--workers", "1"]
    command += ["--uvicorn-opts", "--log-level warning"]
    # jobs: nine processes for what fmoe's runs have no use for
    quiet = {"MLFLOW_LOGGING_LEVEL": "WARNING", "PYTHONWARNINGS": "ignore"}
    quiet["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    environment = {**os.environ, **quiet}
    with subprocess.Popen(command, env=environment, start_new_session=True) as server:
        try:
            with until_interrupted():
                code = server.wait()
        finally:  # Ctrl-C, or the SystemExit that SIGTERM becomes: with all that it has started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
    raise UserError(f"MLflow's server ended with exit code {code}")


def pages_of_study(study: StudyFiles, port: int) -> None:
    """Optuna's dashboard on a copy of the study in memory. Raises `UserError`."""
    try:
        from optuna_dashboard import wsgi
    except ImportError:
        raise UserError(
            "optuna-dashboard is not installed: pip install 'fmoe[dashboard]'"
        ) from None
    from fmoe.tuning.optuna_trials import exported

    check_free(port)
    copy = exported(study.space, study.kept_trials, study.name)
    show(f"study {study.name} at http://{HOST}:{port}/dashboard (Ctrl-C ends it)")
    with served(wsgi(copy._storage), port) as server, until_interrupted():
        server.serve_forever()


def written(study: StudyFiles, file: Path) -> None:
    """The study in a SQLite file as Optuna's tools read it. Raises `UserError`."""
    from sqlalchemy.exc import SQLAlchemyError

    from fmoe.tuning.optuna_trials import exported

    if file.exists():
        raise UserError(f"--to {file}: is there already; give another name")
    try:
        copy = exported(study.space, study.kept_trials, study.name, f"sqlite:///{file}")
    except SQLAlchemyError as error:
        raise UserError(f"--to {file}: cannot be written ({first_line(error)})") from None
    show(f"study {study.name}, {len(copy.trials)} trials, in {file}")


def served(application: WSGIApplication, port: int) -> WSGIServer:
    """A server of it on loopback, not running yet; port 0 is any that is free."""
    return make_server(HOST, port, application, _Server, _Silent)


@contextlib.contextmanager
def until_interrupted() -> Iterator[None]:
    """Ctrl-C is how a server ends, and nothing to be told of."""
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


class _Server(ThreadingMixIn, WSGIServer):
    """A browser opens connections before it asks anything, and each would hold up the others."""

    daemon_threads = True


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass
