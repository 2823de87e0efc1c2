"""Labelled images as people have them, of which `fmoe data prepare SOURCE` makes a data set.

Each form is a module with a function that gives a `Source`: its classes, and its parts with their
labels and pictures, checked as far as can be without decoding one.
"""

from __future__ import annotations

from pathlib import Path

from fmoe.data.sources import folders, npz, published, tables
from fmoe.data.sources.source import Arrays, Columns, Pictures, Source, Wanted
from fmoe.errors import UserError, first_line

__all__ = ["Arrays", "Columns", "Pictures", "Source", "Wanted", "opened"]


def opened(place: Path, columns: Columns) -> Source:
    """What is at a path. Raises `UserError` for what is none of the forms, or two of them."""
    try:
        return _opened(place, columns)
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({first_line(error)})") from None


def _opened(place: Path, columns: Columns) -> Source:
    if not place.exists():
        raise UserError(f"{place}: no such file or folder, and no data set of that name")
    if place.is_file():
        if place.suffix == ".npz":
            return npz.source(place)
        if place.suffix == ".parquet":
            return tables.source(place, columns)
        raise UserError(f"{place}: expected a folder, .parquet or .npz")
    if published.found(place):
        return published.source(place)
    forms = {"Parquet": tables.found(place), "folders of images": folders.found(place)}
    there = [form for form, found in forms.items() if found]
    if len(there) > 1 and tables.uses_files(place, columns):
        return tables.source(place, columns)
    if len(there) > 1:
        raise UserError(f"{place}: holds {' and '.join(there)}; give one of the two")
    if there == ["Parquet"]:
        return tables.source(place, columns)
    if there:
        return folders.source(place)
    raise UserError(
        f"{place}: holds no data set: expected CLASS/*, {{train,val,test}}/CLASS/*, "
        "*.parquet, or the published files of CIFAR, SVHN or MNIST"
    )
