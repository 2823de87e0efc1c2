"""The official files through torchvision, which checks their md5."""

from __future__ import annotations

import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fmoe.errors import UserError, first_line
from fmoe.readers.arrays import PARTS
from fmoe.readers.aside import aside, remove_left


@contextmanager
def downloaded(name: str, folder: Path) -> Iterator[Path]:
    """The folder of the files while the body reads them.

    `folder`, where they are there already, or one beside it, which takes its place once the body
    has ended without an error: what is there is not replaced by what cannot be read.
    """
    if folder.is_dir() and _whole(name, folder):
        remove_left(folder)
        yield folder
        return
    with aside(folder) as place:
        fresh = place / folder.name
        fresh.mkdir()
        try:
            _fetch(name, fresh, download=True)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"{name} could not be downloaded ({first_line(error)}): no network? "
                "Give --data-dir with its files"
            ) from None
        yield fresh
        if folder.exists():
            folder.rename(place / "replaced")
        fresh.rename(folder)


def _whole(name: str, folder: Path) -> bool:
    try:
        _fetch(name, folder, download=False)
    except RuntimeError:  # a file is missing, or another than was published
        return False
    return True


def _fetch(name: str, folder: Path, download: bool) -> None:
    import torchvision

    if name == "cifar10":
        torchvision.datasets.CIFAR10(str(folder), train=True, download=download)
    else:
        for part in PARTS:
            torchvision.datasets.SVHN(str(folder), split=part, download=download)
