"""The store of our own: a SQLite file and an artifact folder, in `FMOE_HOME/mlflow`.

MLflow records absolute locations. A home that was renamed, copied or mounted elsewhere has them put
right when its store is opened; one that cannot be written is read through a copy of the database.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout

from fmoe.errors import UserError, first_line
from fmoe.paths import aside, home, writable

DATABASE = "mlflow.db"
PATIENCE_SECONDS = 25.0  # seconds, for another process that holds the store
LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
"""Tables and columns in which MLflow keeps where artifacts are."""
IN_A_HOME = re.compile(r"file:.*/mlflow/artifacts(?=/|$)")
logger = logging.getLogger(__name__)


def folder() -> Path:
    return home() / "mlflow"


def artifacts() -> str:
    """The URI under which everything is kept."""
    return (folder() / "artifacts").as_uri()


def read_only() -> bool:
    """Whether the store can be read at most."""
    return not (writable(folder()) and writable(folder() / DATABASE))


def check_writable() -> None:
    """Raises `UserError`."""
    if read_only():
        raise UserError(f"{folder()}: cannot be written, and runs are recorded there: set "
                        "FMOE_HOME or MLFLOW_TRACKING_URI to where you may write")  # fmt: skip


def uri() -> str:
    """What MLflow is to open: the database, or the copy of it that is read instead."""
    if read_only():
        return f"sqlite:///{_copied(folder(), artifacts(), _stamp())}/{DATABASE}"
    place = str(folder())
    if unquote(place) != place or "?" in place:  # a name that a URI cannot hold as MLflow reads it
        place = f"{_linked(folder())}/mlflow"
    return f"sqlite:///{place}/{DATABASE}"


@contextlib.contextmanager
def opening() -> Iterator[None]:
    """While the block runs nobody else opens the store, whose locations are right.

    Several processes that make a fresh SQLite store at once leave it broken.
    Raises `UserError` for a store that cannot be opened.
    """
    if read_only():
        yield
        return
    try:
        folder().mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder() / ".lock", timeout=PATIENCE_SECONDS)
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{folder()}: another process has been opening the store for {PATIENCE_SECONDS:.0f} "
            "seconds: end it, or try again"
        ) from None
    except OSError as error:
        raise UserError(f"FMOE_HOME {home()}: cannot be written ({first_line(error)})") from None
    try:
        if (folder() / DATABASE).exists():
            with _database(folder() / DATABASE) as database:
                _put_right(database, artifacts(), bring=True)
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _database(path: Path, mode: str = "rw") -> Iterator[sqlite3.Connection]:
    """One transaction. Raises `UserError` for a file that SQLite refuses."""
    try:
        with (
            contextlib.closing(
                sqlite3.connect(
                    f"{path.as_uri()}?mode={mode}", uri=True, timeout=PATIENCE_SECONDS / 2
                )
            ) as database,
            database,
        ):
            yield database
    except sqlite3.Error as error:
        raise UserError(f"{path}: {refusal(error)}") from None


def refusal(error: Exception) -> str:
    """What SQLite says of a database, and the remedy."""
    text = first_line(error)
    if "locked" in text:
        return f"{text} by another program: end it, or try again"
    if "not a database" in text or "malformed" in text:
        return f"damaged ({text}): put a backup there, or move it away to start anew"
    return text


def _put_right(database: sqlite3.Connection, ours: str, *, bring: bool) -> None:
    """Locations in a home that was elsewhere become those in this one.

    bring: what a run left at the old place alone is copied to here; otherwise it stays the place.
    """
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    for table, column in LOCATIONS:
        if table not in tables:
            continue
        query = f"SELECT DISTINCT {column} FROM {table} WHERE {column} LIKE 'file:%'"  # noqa: S608
        for (old,) in database.execute(query).fetchall():
            new = _moved(old, ours)
            if new != old and (_brought(old, new) if bring else not _only_there(old, new)):
                update = f"UPDATE {table} SET {column} = ? WHERE {column} = ?"  # noqa: S608
                database.execute(update, (new, old))
    if "experiments" in tables:  # MLflow's default one: in what was the working directory
        where = "FROM experiments WHERE experiment_id = 0 AND artifact_location LIKE '%/mlruns/0'"
        if database.execute(f"SELECT 1 {where}").fetchone():
            update = "UPDATE experiments SET artifact_location = ? WHERE experiment_id = 0"
            database.execute(update, (ours,))


def _moved(location: str, ours: str) -> str:
    if location == ours or location.startswith(f"{ours}/"):
        return location
    return IN_A_HOME.sub(lambda _: ours, location, count=1)


def _path(location: str) -> Path:
    return Path(unquote(urlsplit(location).path))


def _only_there(old: str, new: str) -> bool:
    return os.path.isdir(_path(old)) and not os.path.exists(_path(new))


def _brought(old: str, new: str) -> bool:
    """True once what is at the old place alone is at the new one; False where it must stay."""
    if not _only_there(old, new) or old.endswith("/mlflow/artifacts"):
        return True
    try:
        shutil.copytree(_path(old), _path(new), symlinks=True)
    except (OSError, shutil.Error) as error:
        logger.warning("%s: cannot be brought to %s (%s)", _path(old), home(), first_line(error))
        shutil.rmtree(_path(new), ignore_errors=True)
        return False
    return True


def _stamp() -> tuple[int, int]:
    """Changes with the database."""
    try:
        stat = (folder() / DATABASE).stat()
    except OSError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_size


@functools.lru_cache(maxsize=4)
def _copied(place: Path, ours: str, _stamp: object) -> Path:
    """A folder with the database as it is, locations put right; empty where there is none."""
    target = aside()
    if os.path.exists(place / DATABASE):
        with (
            _database(place / DATABASE, "ro") as source,
            _database(target / DATABASE, "rwc") as copy,
        ):
            source.backup(copy)
            _put_right(copy, ours, bring=False)
    return target


@functools.lru_cache(maxsize=4)
def _linked(place: Path) -> Path:
    """A folder with a link `mlflow` to the store's, whose own name is no URI's."""
    target = aside()
    (target / "mlflow").symlink_to(place)
    return target
