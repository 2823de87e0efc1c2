"""Data sets of the user's own, as `fmoe data prepare SOURCE --name NAME` keeps them.

A folder NAME, here or in an object store: `set.json` with all that was measured, and files of
Parquet (`fmoe.data.shards`), whose names hold digests: a new set stands beside the old one until
`set.json`, written last, names it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fmoe.data.facts import MOST_CLASSES, ClassName, Facts, Mean, Side, Std, check_channels
from fmoe.data.kinds import Info
from fmoe.data.readers import Kind
from fmoe.data.shards import FILE, Digest, Given, Part, Shards, rows_of
from fmoe.data.shards import write as write_files
from fmoe.data.splits import feed, flat
from fmoe.errors import UserError, first_line
from fmoe.paths import home
from fmoe.schema import faults
from fmoe.storage.folder import Damaged, Folder

SET = "set.json"
FORMAT: Literal[2] = 2
PartName = Literal["train", "val", "test"]
PART_NAMES: tuple[PartName, ...] = get_args(PartName)
BEFORE = r"^(train|val|test)-[0-9a-f]{16}\.safetensors$"
"""A part of format 1."""
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
AT_ONCE = 256
"""Images of which the digest is taken."""


class SetFile(BaseModel):
    """What `set.json` holds. train_digest: of train and val; digest: of test, too."""

    model_config = ConfigDict(strict=True)
    format: Literal[2]
    shape: Annotated[list[Side], Field(min_length=3, max_length=3)]
    classes: Annotated[list[ClassName], Field(min_length=2, max_length=MOST_CLASSES)]
    mean: list[Mean]
    std: list[Std]
    val_images: Annotated[int, Field(ge=1)]
    train_digest: Digest
    digest: Digest
    source: Annotated[str, Field(max_length=5000)]
    parts: dict[PartName, Part]

    @model_validator(mode="after")
    def _fits(self) -> SetFile:
        check_channels(self.shape[0], self.mean, self.std)
        for name in ("train", "test"):
            if name not in self.parts:
                raise ValueError(f"parts: no {name}")
        channels, height, width = self.shape
        for name, part in self.parts.items():
            try:
                part.check((channels, height, width))
            except ValueError as error:
                raise ValueError(f"parts.{name}.{error}") from None
            if len(part.per_class) != len(self.classes) or sum(part.per_class) != part.images:
                raise ValueError(f"parts.{name}.per_class: does not fit classes and images")
        return self


@dataclass(frozen=True)
class Own:
    """A prepared set. folder: its own, which holds `set.json`."""

    name: str
    folder: Folder
    about: SetFile

    @property
    def facts(self) -> Facts:
        channels, height, width = self.about.shape
        return Facts(
            shape=(channels, height, width),
            classes=tuple(self.about.classes),
            mean=tuple(map(float, self.about.mean)),
            std=tuple(map(float, self.about.std)),
        )

    @property
    def info(self) -> Info:
        facts = self.facts
        return Info(facts.shape, facts.classes, facts.mean, facts.std, self.about.val_images)

    @property
    def kind(self) -> Kind:
        return Kind(self.name, self.facts.shape, self.facts.classes)

    @property
    def origin(self) -> str:
        """Where it is read from, for messages."""
        return self.folder.uri

    def has(self, part: PartName) -> bool:
        return part in self.about.parts

    def shards(self, part: PartName) -> Shards:
        """The part's files."""
        return Shards(self.folder, self.about.parts[part], self.kind)


def places(data_dir: str | Path | None) -> Iterator[Folder]:
    """Where sets of the user's own are looked for: `--data-dir` (or FMOE_DATA_DIR), then home."""
    given = data_dir or os.environ.get("FMOE_DATA_DIR") or None
    if given is not None:
        yield Folder.at(given).reach()
    yield Folder.at(home() / "data")


def find(name: str, data_dir: str | Path | None = None) -> Own | None:
    """The set of this name, or None. Raises `UserError` for one that is damaged."""
    if not NAME.fullmatch(name):
        return None
    for place in places(data_dir):
        if (found := at(place / name)) is not None:
            return found
    return None


def at(folder: Folder) -> Own | None:
    """The set in a folder; None where there is none."""
    source = f"{folder.uri}/{SET}"
    try:
        tree = folder.read_json(SET)
        if tree.get("format") == 1:
            raise UserError(f"{source}: of an earlier version; run `fmoe data prepare` again")
        return Own(folder.name, folder, SetFile.model_validate(tree))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        raise UserError(f"{source}: {faults(error, tree)}") from None
    except Damaged as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({first_line(error)})") from None


def listed(data_dir: str | Path | None = None) -> list[Own]:
    """All there are, by name; of two of one name the one that `find` gives. What is damaged is none
    of them: `find` says so of it."""
    found: dict[str, Own] = {}
    for place in places(data_dir):
        try:
            names = place.names()
        except OSError as error:
            raise UserError(f"{place.uri}: cannot be read ({first_line(error)})") from None
        for name in names:
            if name not in found and NAME.fullmatch(name):
                with suppress(UserError):
                    if one := at(place / name):
                        found[name] = one
    return [found[name] for name in sorted(found)]


def write(
    folder: Folder,
    parts: Mapping[PartName, Given],
    facts: Facts,
    *,
    val_images: int,
    source: str,
) -> Own:
    """Makes the folder this set's. source: where the images come from, for people. What was there
    before goes once the new set counts."""
    shape = facts.shape
    digests = Digests.of(parts, shape)
    entries = {
        name: Part(
            images=len(given.labels),
            per_class=np.bincount(given.labels, minlength=len(facts.classes)).tolist(),
            digest=digests.parts[name],
            rows=rows_of(shape),
            files=write_files(folder, name, given, shape),
        )
        for name, given in parts.items()
    }
    about = SetFile(
        format=FORMAT,
        **facts.plain(),
        val_images=val_images,
        train_digest=digests.train,
        digest=digests.whole,
        source=source,
        parts=entries,
    )
    folder.write_json(SET, about.model_dump(mode="json"))
    kept = {file.file for part in entries.values() for file in part.files}
    for name in folder.names():
        if name not in kept and (re.fullmatch(FILE, name) or re.fullmatch(BEFORE, name)):
            with suppress(OSError):
                folder.delete_file(name)
    return Own(folder.name, folder, about)


@dataclass(frozen=True)
class Digests:
    """sha256 over images and labels: of each part, of train and val, and of all."""

    parts: Mapping[PartName, str]
    train: str
    whole: str

    @classmethod
    def of(cls, parts: Mapping[PartName, Given], shape: tuple[int, int, int]) -> Digests:
        """Reads some images at a time."""
        whole, own, train = hashlib.sha256(), {}, ""
        for name in (name for name in PART_NAMES if name in parts):
            if name == "test":
                train = whole.hexdigest()
            alone, given = hashlib.sha256(), parts[name]
            count = len(given.labels)
            for sha in (whole, alone):
                feed(sha, (count, *shape))
            for pixels in given.chunks(AT_ONCE):
                for sha in (whole, alone):
                    sha.update(flat(pixels))
            for sha in (whole, alone):
                feed(sha, (count,), flat(given.labels))
            own[name] = alone.hexdigest()
        return cls(own, train, whole.hexdigest())


def summary(own: Own) -> dict[str, Any]:
    """Counts, shape, classes, mean and std, for JSON."""
    counts: dict[str, Any] = {
        part: own.about.parts[part].images if own.has(part) else None for part in PART_NAMES
    }
    return dict(name=own.name, **counts, **own.facts.plain(), digest=own.about.digest)
