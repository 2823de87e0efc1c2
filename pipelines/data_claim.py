"""A run or a study belongs to the data that it was made from.

Its folder says which in `data.json`: digests over images and labels, so the same images in other
files are the same data. Asked for again on other data it is refused, finished or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fmoe import data
from fmoe.config import Config
from fmoe.data import Data, Images, TrainingData
from fmoe.errors import UserError
from fmoe.storage.folder import Damaged, Folder

FILE = "data.json"
PARTS = {
    "train_digest": "training images or labels",
    "test_digest": "test images or labels",
    "digest": "images or labels",
}
"""What differs where a digest does, the closest first."""


def check_images(settings: Config, data_dir: str | Path | None) -> None:
    """Raises `UserError` where there is no such data set, or the recipe is not for its images."""
    found = data.find(settings.data.name, data_dir)
    try:
        settings.check_images(found.facts.shape)
    except ValueError as error:
        raise UserError(f"{error} ({found.name})") from None


def load(
    settings: Config, data_dir: str | Path | None, copies: Folder, *, test: bool
) -> TrainingData[Images]:
    """test: whether the test images' files are opened, too; it is a `Data` then. copies: of data
    that are streamed and not in files yet."""
    wanted = settings.data
    reader = data.load if test else data.load_training
    return reader(
        wanted.name,
        data_dir,
        val_images=wanted.val_images,
        train_images=wanted.train_images,
        stream=wanted.stream,
        copies=copies,
    )


def claim_data(
    folder: Folder,
    loaded: TrainingData[Images],
    data_dir: str | Path | None,
    evaluated: Folder | None = None,
) -> None:
    """Makes the folder the loaded data's; what it does not know of them yet is added.

    evaluated: where a version that kept no `data.json` has left its `evaluation.json`.
    Raises `UserError` where the folder is other data's.
    """
    place = data.origin(loaded.name, data_dir)
    digests = {"train_digest": loaded.train_digest}
    if isinstance(loaded, Data):
        digests |= {"test_digest": loaded.test_digest, "digest": loaded.digest}
    known = recorded(folder, evaluated or folder)
    for key, what in PARTS.items():
        before, now = known.get(key), digests.get(key)
        if before and now and before != now:
            raise UserError(
                f"{folder.uri}: was made from {named(loaded.name, before, known.get('from'))}, and "
                f"{named(loaded.name, now, place)} has other {what}: give the data that it was "
                "made from (--data-dir), or another --name"
            )
    entry = {"from": place, **known, "name": loaded.name, **digests}
    if entry != known:
        folder.write_json(FILE, entry)


def named(name: str, digest: str, place: str | None) -> str:
    return f"{name} {digest[:12]}" + (f" ({place})" if place else "")


def recorded(folder: Folder, evaluated: Folder) -> dict[str, Any]:
    """What the folder says of its data; nothing where it is new. Raises `UserError`."""
    try:
        if folder.exists(FILE):
            return _digests(folder, FILE)
        if evaluated.exists("evaluation.json"):
            return {"digest": _digests(evaluated, "evaluation.json").get("digest")}
    except Damaged as error:
        raise UserError(str(error)) from None
    return {}


def _digests(folder: Folder, file: str) -> dict[str, Any]:
    entry = folder.read_json(file)
    if not all(isinstance(entry.get(key, ""), str) for key in (*PARTS, "from")):
        raise Damaged(f"{folder.uri}/{file}: digests of data are text")
    return entry


@contextmanager
def reading(folder: Folder, finished: bool) -> Iterator[None]:
    """While data are read for a folder whose result may be there already."""
    try:
        yield
    except UserError as error:
        if not finished:
            raise
        raise UserError(
            f"{error} (the result of before stands in {folder.uri}/result.json; it is given again "
            "for the same data only)"
        ) from None
