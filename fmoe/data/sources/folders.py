"""Folders of images, one a class: `CLASS/*`, or `{train,val,test}/CLASS/*`.

Classes are the folders' names, in alphabetical order. Images stand in the order of their names
(2 before 10), whatever class they are of, so that files that are numbered through keep their order.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from fmoe.data.images import contents
from fmoe.data.own import PartName
from fmoe.data.sources.source import Encoded, Pictures, Source
from fmoe.errors import UserError, first_line

PARTS: dict[str, PartName] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
IMAGES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
)
LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
"""What systems leave in folders of images, beside hidden files."""


def found(place: Path) -> bool:
    """Whether there are images in folders."""
    return any(
        Path(name).suffix.lower() in IMAGES
        for folder in subfolders(place)
        for _, _, names in os.walk(folder)
        for name in names
    )


def source(place: Path) -> Source:
    """Raises `UserError` with the name of what is no image's place."""
    parts = _parts(place)
    refuse_files(place)
    classes = _classes(parts)
    return Source(
        str(place),
        classes,
        {part: _pictures(folder, classes) for part, folder in parts.items()},
    )


def _parts(place: Path) -> dict[PartName | None, Path]:
    """The folder of each part; all images are one where the folders are classes."""
    inner = subfolders(place)
    named = [folder for folder in inner if folder.name.lower() in PARTS]
    if len(named) < len(inner):
        if deep := [folder for folder in named if subfolders(folder)]:
            other = next(folder for folder in inner if folder not in named)
            raise UserError(
                f"{other}: stands beside {deep[0].name}/, which looks like a part: expected "
                "{train,val,test}/CLASS or CLASS alone; put it elsewhere"
            )
        return {None: place}
    parts: dict[PartName | None, Path] = {}
    for folder in inner:
        if not subfolders(folder):
            raise UserError(f"{folder}: holds no folders of classes")
        part = PARTS[folder.name.lower()]
        if part in parts:
            raise UserError(f"{place}: has {part} twice, {parts[part].name} and {folder.name}")
        parts[part] = folder
    return parts


def _classes(parts: dict[PartName | None, Path]) -> tuple[str, ...]:
    """Their names, which all parts share. Raises `UserError`."""
    classes: dict[str, Path] = {}
    first = parts.get("train") or next(iter(parts.values()))
    for folder in [first, *parts.values()]:
        names = {each.name for each in subfolders(folder)}
        if not classes:
            classes = {name: folder / name for name in names}
        if other := sorted(names - classes.keys()):
            raise UserError(f"{folder / other[0]}: a class that {first} does not have")
        refuse_files(folder)
    seen: dict[Path, str] = {}
    for name, folder in sorted(classes.items()):
        real = folder.resolve()
        if real in seen:
            raise UserError(f"{folder}: is the same folder as class {seen[real]!r}")
        seen[real] = name
        if not name.isprintable() or name != name.encode(errors="replace").decode():
            raise UserError(f"{classes[name]}: a class's name must be printable text; rename it")
    return tuple(sorted(classes))


def _pictures(folder: Path, classes: tuple[str, ...]) -> Pictures:
    files = [(file, label) for label, name in enumerate(classes) for file in _files(folder / name)]
    files.sort(key=lambda entry: (*natural(entry[0].name), str(entry[0])))
    version = hashlib.sha256()
    for file, _ in files:
        try:
            state = file.stat()
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({first_line(error)})") from None
        version.update(repr((str(file), state.st_size, state.st_mtime_ns)).encode())
    labels = np.array([label for _, label in files], np.int64)
    return Pictures(labels, partial(_read, [file for file, _ in files]), version.hexdigest())


def _read(files: list[Path], start: int) -> Iterator[Encoded]:
    for file in files[start:]:
        yield str(file), contents(file)


def _files(folder: Path) -> Iterator[Path]:
    """All files below a class's folder. Raises `UserError` for a part within it."""
    if not folder.is_dir():
        return
    for part in subfolders(folder):
        if part.name.lower() in PARTS:
            raise UserError(f"{part}: a part within a class; expected {{train,val,test}}/CLASS")
    yield from files_below(folder)


def files_below(folder: Path) -> Iterator[Path]:
    """All files in a folder and those in it. Raises `UserError` for a link to a folder."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({first_line(error)})")

    for at, inner, names in os.walk(folder, onerror=refuse):
        inner[:] = sorted(name for name in inner if not is_litter(name))
        for name in inner:
            if Path(at, name).is_symlink():
                raise UserError(f"{Path(at, name)}: a link to a folder; put the folder there")
        yield from (Path(at, name) for name in names if not is_litter(name))


def natural(name: str) -> tuple[tuple[tuple[int, str], ...], str]:
    """A key by which 2 stands before 10."""
    parts = re.split(r"(\d+)", name.lower())
    return tuple((int(part) if part.isdecimal() else 0, part) for part in parts), name


def subfolders(place: Path) -> list[Path]:
    try:
        inner = [each for each in place.iterdir() if each.is_dir() and not is_litter(each.name)]
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({first_line(error)})") from None
    return sorted(inner, key=lambda each: each.name)


def refuse_files(place: Path) -> None:
    """Raises `UserError` for an image where folders belong: it would silently be left out."""
    for each in sorted(place.iterdir()):
        if each.suffix.lower() in IMAGES and not each.is_dir() and not is_litter(each.name):
            raise UserError(f"{each}: stands beside folders of images; put it in one or remove it")


def is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in LITTER
