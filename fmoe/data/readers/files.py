"""Whether a given file can be read at all: it is there, whole, and a file."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

from fmoe.errors import UserError, first_line

UNFINISHED = (".incomplete", ".crdownload", ".part", ".partial", ".download", ".aria2", ".tmp")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def names_in(folder: Path) -> list[str]:
    """Sorted; none where there is no such folder."""
    try:
        return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({first_line(error)})") from None


def refuse_unfinished(folder: Path, names: list[str], published: Callable[[str], bool]) -> None:
    """Raises `UserError` for what a download that goes on, or broke off, has left beside."""
    for name in names:
        for end in UNFINISHED:
            if name.endswith(end) and published(name.removesuffix(end)):
                raise UserError(
                    f"{folder / name}: an unfinished download; finish it or remove that file"
                )


def ensure_whole(file: Path) -> Path:
    """The same file. Raises `UserError` for a missing one, a pipe, a folder, a Git LFS pointer."""
    try:
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode):
            raise UserError(f"{file}: not a file")
        with file.open("rb") as stream:
            start = stream.read(len(LFS_POINTER))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)})") from None
    if start == LFS_POINTER:
        raise UserError(f"{file}: a Git LFS pointer and not the file; run `git lfs pull` there")
    return file


def content(file: Path, most: int) -> bytes:
    """All bytes of a file of at most `most`."""
    size = ensure_whole(file).stat().st_size
    if size > most:
        raise UserError(f"{file}: {size} bytes, more than the {most} that are read")
    try:
        return file.read_bytes()
    except (OSError, MemoryError) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)})") from None
