"""Where a Ray of this machine keeps its files, and how long it may take to start."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

from fmoe.cpus import usable_cpus
from fmoe.errors import UserError
from fmoe.on_ray import private

START_SECONDS = 15.0  # an idle machine takes three, a busy one ten
PATIENCE = "FMOE_RAY_SECONDS"
SOCKET = 103 if sys.platform == "darwin" else 107  # letters of a Unix socket's path, at most
SESSION = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.12")
PRIVATE = "fmoe-ray-"
SHORT = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - mkdtemp makes a private folder there


RAYLET_SECONDS = 2  # that Ray's own code waits for its raylet, without seeing a signal of ours


class Late(BaseException):
    """Ray's time is over. No `except Exception` of Ray's shall take it."""


def folder() -> Path:
    """For Ray's sockets and logs: its usual one, `ray` below RAY_TMPDIR or the system's.

    Where that one's path is too long for a socket, or another user's, it is a private one with a
    short name, for `tidy` to remove. Raises `UserError` where no folder will do.
    """
    named = os.environ.get("RAY_TMPDIR")
    try:
        usual = Path(named or tempfile.gettempdir()).absolute() / "ray"
    except FileNotFoundError:
        raise UserError(f"TMPDIR: {_no_folder()}") from None
    if named:
        _check(usual)
    fits = len(os.fsencode(usual)) + SESSION <= SOCKET
    return usual if fits and _writable(usual) else _private()


def tidy(folder: Path) -> None:
    if folder.name.startswith(PRIVATE):
        shutil.rmtree(folder, ignore_errors=True)


def _check(usual: Path) -> None:
    """Of a folder that RAY_TMPDIR names."""
    try:
        usual.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=usual).close()
    except OSError as error:
        raise UserError(
            f"RAY_TMPDIR={usual.parent}: Ray cannot write there ({error.strerror}): name another "
            "folder, or unset it"
        ) from None


def _writable(usual: Path) -> bool:
    try:
        usual.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=usual).close()
    except OSError:
        return False
    return True


def _private() -> Path:
    for place in SHORT:
        try:
            return Path(tempfile.mkdtemp(prefix=PRIVATE, dir=place))
        except OSError:
            continue
    raise UserError(f"RAY_TMPDIR: {_no_folder()}")


def _no_folder() -> str:
    return (
        "no folder for temporary files can be written to: set it to one that can, with a path of "
        f"at most {SOCKET - SESSION - len('/ray')} letters (Ray puts sockets there)"
    )


def said(folder: Path) -> str:
    """Where this process's Ray has put its logs, and the last word of a part of it that failed."""
    sessions = sorted(folder.glob(f"session_*_{os.getpid()}"))
    logs = sessions[-1] / "logs" if sessions else folder
    for name in ("gcs_server", "raylet"):
        for file in sorted(logs.glob(f"{name}*.err")):
            lines = file.read_text(errors="replace").split("\n")
            if words := [line for line in lines if line.strip()]:
                return f"its logs are in {logs}, and {file.name} ends with: {words[-1]}"
    return f"its logs are in {logs}"


def seconds() -> float:
    """How long Ray may take; it is told, too. Raises `UserError`."""
    text = os.environ.get(PATIENCE) or f"{START_SECONDS * queue():.0f}"
    try:
        limit = float(text)
        if not 0 < limit < threading.TIMEOUT_MAX:
            raise ValueError
    except ValueError:
        raise UserError(f"{PATIENCE}={text}: expected a number of seconds, such as 60") from None
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", str(ceil(limit)))
    os.environ.setdefault("RAY_raylet_start_wait_time_s", str(RAYLET_SECONDS))  # it asks again
    private.read_environment()
    return limit


def queue() -> float:
    """How many processes wait for each CPU, 1 to 4: where others keep the machine busy, a Ray that
    starts takes so much longer."""
    return min(4.0, max(1.0, os.getloadavg()[0] / usable_cpus()))


@contextmanager
def within(limit: float, message: Callable[[], str]) -> Iterator[None]:
    """Raises `UserError` with the message in the block when it takes longer.

    Only the main thread can be interrupted: elsewhere Ray's own limits hold, which are longer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    here = threading.get_ident()
    over, lock = threading.Event(), threading.Lock()

    def late(_signum: int, _frame: FrameType | None) -> NoReturn:
        raise Late

    def watch() -> None:
        if not over.wait(limit):
            with lock:
                if not over.is_set():
                    signal.pthread_kill(here, signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, late)
    threading.Thread(target=watch, daemon=True).start()
    try:
        try:
            yield
        finally:  # where it may come as well, instead of what Ray says at the same moment
            with lock:
                over.set()
    except Late:
        raise UserError(message()) from None
    finally:
        signal.signal(signal.SIGALRM, before)


@contextmanager
def nothing_left() -> Iterator[None]:
    """Where the block fails, the processes that it started are ended: Ray keeps those of a start
    that failed for as long as this process lives."""
    before = set(psutil.Process().children(recursive=True))
    try:
        yield
    except BaseException:
        for process in set(psutil.Process().children(recursive=True)) - before:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        raise
