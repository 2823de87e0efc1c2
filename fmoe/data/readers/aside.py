"""A folder to write in beside what it will replace, and the removal of those that were left."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

END = ".tmp"


@contextmanager
def aside(target: Path) -> Iterator[Path]:
    """An empty folder on the target's file system, gone afterwards.

    Whoever writes in one holds a lock on it, which ends with the process, even a killed one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_left(target)
    folder = Path(tempfile.mkdtemp(END, f".{target.name}.", target.parent))
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_left(target: Path) -> None:
    """The folders of a target that killed processes left."""
    for left in target.parent.glob(f".{target.name}.*{END}"):
        try:
            lock = os.open(left, os.O_RDONLY)
        except OSError:  # gone since
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        except BlockingIOError:
            pass  # somebody writes in it
        finally:
            os.close(lock)
