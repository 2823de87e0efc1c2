"""Data sets of the user's own, as `fmoe data prepare SOURCE --name NAME` keeps them.

A folder NAME, here or in an object store: `set.json` with all that was measured, and a safetensors
file a part, whose names hold digests: a new set stands beside the old one until `set.json`, written
last, names it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from fmoe.data.facts import MOST_CLASSES, ClassName, Facts, Mean, Side, Std, check_channels
from fmoe.data.kinds import Info
from fmoe.data.readers import Arrays, Kind, checked
from fmoe.errors import UserError, first_line
from fmoe.paths import home
from fmoe.schema import faults
from fmoe.storage.folder import Damaged, Folder, sha256
from fmoe.storage.tensors import pack, read_header, unpack

SET = "set.json"
FORMAT: Literal[1] = 1
PartName = Literal["train", "val", "test"]
PART_NAMES: tuple[PartName, ...] = get_args(PartName)
PART_FILE = r"^(train|val|test)-[0-9a-f]{16}\.safetensors$"
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Pixels = tuple[Tensor, Tensor]
"""Images uint8 [N,C,H,W] and labels int64 [N]."""


class PartFile(BaseModel):
    """A part in `set.json`: its file beside it, which has this digest."""

    model_config = ConfigDict(strict=True, extra="forbid")
    file: Annotated[str, Field(pattern=PART_FILE)]
    sha256: Digest
    images: Annotated[int, Field(ge=1)]
    per_class: list[Annotated[int, Field(ge=0)]]


class SetFile(BaseModel):
    """What `set.json` holds."""

    model_config = ConfigDict(strict=True)
    format: Literal[1]
    shape: Annotated[list[Side], Field(min_length=3, max_length=3)]
    classes: Annotated[list[ClassName], Field(min_length=2, max_length=MOST_CLASSES)]
    mean: list[Mean]
    std: list[Std]
    val_images: Annotated[int, Field(ge=1)]
    digest: Digest
    source: Annotated[str, Field(max_length=5000)]
    parts: dict[PartName, PartFile]

    @model_validator(mode="after")
    def _fits(self) -> SetFile:
        check_channels(self.shape[0], self.mean, self.std)
        for name in ("train", "test"):
            if name not in self.parts:
                raise ValueError(f"parts: no {name}")
        for name, part in self.parts.items():
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

    def read(self, part: PartName) -> Arrays:
        """Raises `UserError`, with the file's name, for what is missing or damaged."""
        entry = self.about.parts[part]
        source = f"{self.folder.uri}/{entry.file}"
        try:
            header = read_header(self.folder, entry.file)
            header.require(like(entry.images, self.facts.shape))
            data = self.folder.read(entry.file, limit=header.size)
            if sha256(data) != entry.sha256:
                raise Damaged(f"{source}: damaged: its sha256 is not that of {SET}")
            tensors = unpack(data, source)
        except FileNotFoundError:
            raise UserError(f"{source}: missing; run `fmoe data prepare` again") from None
        except Damaged as error:
            raise UserError(f"{error}; run `fmoe data prepare` again") from None
        except OSError as error:
            raise UserError(f"{source}: cannot be read ({first_line(error)})") from None
        return checked(source, tensors["images"].numpy(), tensors["labels"].numpy(), self.kind)


def like(images: int, shape: tuple[int, int, int]) -> dict[str, Tensor]:
    """What a part's file holds, without the memory for it."""
    return {
        "images": torch.empty(images, *shape, dtype=torch.uint8, device="meta"),
        "labels": torch.empty(images, dtype=torch.int64, device="meta"),
    }


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
    parts: Mapping[PartName, Pixels],
    facts: Facts,
    *,
    val_images: int,
    digest: str,
    source: str,
) -> Own:
    """Makes the folder this set's. digest: of images and labels of all parts; source: where they
    come from, for people. What was there before goes once the new set counts."""
    entries: dict[PartName, PartFile] = {}
    for name, (images, labels) in parts.items():
        data = pack({"images": images, "labels": labels})
        part = PartFile(
            file=f"{name}-{sha256(data)[:16]}.safetensors",
            sha256=sha256(data),
            images=len(labels),
            per_class=torch.bincount(labels, minlength=len(facts.classes)).tolist(),
        )
        folder.write(part.file, data)
        entries[name] = part
    about = SetFile(
        format=FORMAT,
        **facts.plain(),
        val_images=val_images,
        digest=digest,
        source=source,
        parts=entries,
    )
    folder.write_json(SET, about.model_dump(mode="json"))
    kept = {SET, *(part.file for part in entries.values())}
    for file in folder.names():
        if file not in kept and re.fullmatch(PART_FILE, file):
            with suppress(OSError):
                folder.delete_file(file)
    return Own(folder.name, folder, about)


def summary(own: Own) -> dict[str, Any]:
    """Counts, shape, classes, mean and std, for JSON."""
    counts: dict[str, Any] = {
        part: own.about.parts[part].images if own.has(part) else None for part in PART_NAMES
    }
    return dict(name=own.name, **counts, **own.facts.plain(), digest=own.about.digest)
