"""What `fmoe predict` answers: files and folders in batches, and the forms of its rows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmoe.data.facts import Facts
from fmoe.data.images import read_image
from fmoe.data.sources.folders import IMAGES, files_below, natural
from fmoe.errors import UserError
from fmoe.models.mixture import Mixture
from pipelines.output import percent


class Form(StrEnum):
    """How predictions are written to stdout, an image a line."""

    TEXT = "text"
    CSV = "csv"
    JSONL = "jsonl"


@dataclass(frozen=True)
class Chosen:
    """The images that paths name, and how many other files their folders hold."""

    images: list[Path]
    passed_over: int


def chosen(paths: Sequence[Path]) -> Chosen:
    """Files as they are; of a folder the files with an image's suffix, 2 before 10.

    Raises `UserError` for a folder without one.
    """
    images, passed_over = [], 0
    for path in paths:
        if not path.is_dir():
            images.append(path)
            continue
        files = list(files_below(path))
        inside = [file for file in files if file.suffix.lower() in IMAGES]
        if not inside:
            raise UserError(f"{path}: holds no image ({', '.join(sorted(IMAGES))})")
        images += sorted(inside, key=lambda file: [natural(part) for part in file.parts])
        passed_over += len(files) - len(inside)
    return Chosen(images, passed_over)


@dataclass(frozen=True)
class Predictor:
    """A model that answers about files. unreadable: is told of each that is no picture, and may
    raise."""

    name: str
    network: Mixture
    facts: Facts
    experts: Sequence[str]
    batch: int
    unreadable: Callable[[UserError], None]

    def rows(self, images: Iterable[Path]) -> Iterator[dict[str, Any]]:
        """A prediction an image, in their order. Raises `UserError`."""
        left = iter(images)
        while batch := list(islice(left, self.batch)):
            read = [(image, x) for image in batch if (x := self._read(image)) is not None]
            if read:
                names, pixels = zip(*read, strict=True)
                yield from self._answers(names, torch.stack(pixels))

    def _read(self, image: Path) -> Tensor | None:
        try:
            return read_image(image, self.facts.shape)
        except UserError as error:
            self.unreadable(error)
            return None

    def _answers(self, images: Sequence[Path], x_BCHW: Tensor) -> Iterator[dict[str, Any]]:
        with torch.no_grad():
            probabilities_BK = self.network(x_BCHW).exp()
            weights_BE = self.network.gate_weights(x_BCHW)
        for image, probabilities_K, weights_E in zip(
            images, probabilities_BK, weights_BE, strict=True
        ):
            if not probabilities_K.isfinite().all():
                raise UserError(f"{image}: {self.name} gives what is not finite; no label is right")
            best = int(probabilities_K.argmax())
            yield {
                "image": str(image),
                "label": self.facts.classes[best],
                "probability": probabilities_K[best].item(),
                "gate_weights": dict(zip(self.experts, weights_E.tolist(), strict=True)),
            }


def head(form: Form, experts: Sequence[str]) -> Iterator[str]:
    """The lines before the first row."""
    if form is Form.CSV:
        yield _csv("image", "label", "probability", *(f"weight_{name}" for name in experts))


def line(form: Form, row: Mapping[str, Any]) -> str:
    """A row as a line; numbers of CSV and JSON are exact."""
    match form:
        case Form.JSONL:
            return json.dumps(row)
        case Form.CSV:
            return _csv(
                row["image"], row["label"], row["probability"], *row["gate_weights"].values()
            )
        case Form.TEXT:
            expert, weight = max(row["gate_weights"].items(), key=lambda item: item[1])
            return (
                f"{row['image']}: {row['label']} {percent(row['probability'])} "
                f"(most weight: {expert} {percent(weight)})"
            )


def _csv(*values: object) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(values)
    return out.getvalue()
