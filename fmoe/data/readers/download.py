"""The official files from where they are published, each of which has a digest."""

from __future__ import annotations

import urllib.error
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fmoe.data.readers.aside import aside, remove_left
from fmoe.errors import UserError, first_line


@dataclass(frozen=True)
class Download:
    """A file by its URL. md5: in hexadecimal, as data sets publish it."""

    url: str
    md5: str

    @property
    def file(self) -> str:
        """Its name in the folder."""
        return self.url.rpartition("/")[2]


@contextmanager
def downloaded(name: str, files: Sequence[Download], folder: Path) -> Iterator[Path]:
    """The folder of a data set's files while the body reads them.

    `folder`, where they are there already, or one beside it, which takes its place once the body
    has ended without an error: what is there is not replaced by what cannot be read.
    """
    if not files:
        raise UserError(f"{name} cannot be downloaded: give --data-dir with its files")
    if folder.is_dir() and _whole(files, folder):
        remove_left(folder)
        yield folder
        return
    with aside(folder) as place:
        fresh = place / folder.name
        fresh.mkdir()
        try:
            _fetch(files, fresh)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"{name} could not be downloaded ({first_line(error)}): no network? "
                "Give --data-dir with its files"
            ) from None
        yield fresh
        if folder.exists():
            folder.rename(place / "replaced")
        fresh.rename(folder)


def _whole(files: Sequence[Download], folder: Path) -> bool:
    """Whether each is there, and is the one that was published."""
    from torchvision.datasets import utils

    return all(utils.check_integrity(str(folder / each.file), each.md5) for each in files)


def _fetch(files: Sequence[Download], folder: Path) -> None:
    from torchvision.datasets import utils

    for each in files:
        utils.download_url(each.url, str(folder), each.file, each.md5)
