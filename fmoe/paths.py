"""Where fmoe keeps its own: FMOE_HOME, or ~/.local/share/fmoe."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from fmoe.errors import UserError, first_line


def home() -> Path:
    """Absolute, links followed. Raises `UserError` where it is no folder, or cannot be told."""
    named = os.environ.get("FMOE_HOME")
    try:
        path = Path(named).expanduser() if named else Path.home() / ".local" / "share" / "fmoe"
        path = path.resolve()
        usable = path.is_dir() or not path.exists()
    except (OSError, RuntimeError) as error:  # no HOME and no entry in passwd; a loop of links
        where = f"FMOE_HOME {named}" if named else "no home folder"
        raise UserError(f"{where}: {first_line(error)}: set FMOE_HOME to a folder") from None
    if not usable:
        raise UserError(f"FMOE_HOME {path}: is a file; set it to a folder")
    return path


def writable(path: Path) -> bool:
    """Whether a file or folder can be written, or made where it is not there yet."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return os.access(path, os.W_OK)


def aside() -> Path:
    """A folder of this process's own, which goes with it."""
    path = Path(tempfile.mkdtemp(prefix="fmoe-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path
