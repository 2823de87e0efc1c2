"""The images that a trained model is judged on, and what the training images beside them tell.

Test files alone suffice. Nothing is cut out of train here: the published training images serve
the digest of the whole set and the look for test images among them, and are not kept. A large set
stays in its files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmoe.data.facts import Facts
from fmoe.data.reading import Opened
from fmoe.data.splits import Images, flat
from fmoe.errors import UserError

LEAKED_SHARE = 0.005
"""Share of test images among the training images from which on it is a flag."""


@dataclass(frozen=True)
class HeldOut:
    """The test split as it is published.

    per_class: how many there are of each; test_digest: sha256 over its images and labels; digest:
    over those of train and test; leaked: bool [N], which of them are training images, too, pixel
    for pixel; unread: why the training images could not be read. digest and leaked are None then.
    """

    name: str
    facts: Facts
    test: Images
    per_class: list[int]
    test_digest: str
    digest: str | None
    leaked: Tensor | None
    unread: str | None

    @classmethod
    def read(cls, name: str, data_dir: str | Path | None = None) -> HeldOut:
        """Raises `UserError` where the test images cannot be read; those of train may be missing or
        damaged: they decide no verdict."""
        opened = Opened.of(name, data_dir, None, None)
        test = opened.images("test")
        counts, test_digest = opened.counts("test", test), opened.test_digest(test)
        given = (name, opened.data_set.facts, test, counts, test_digest)
        try:
            train, val = opened.images("train"), opened.val()
            leaked = among(test, train)
            if val is not None:
                leaked |= among(test, val)
            return cls(*given, opened.digest(train, val, test), leaked, None)
        except UserError as error:
            return cls(*given, None, None, str(error))

    def count_leaked(self, judged: int) -> int | None:
        """Of the first `judged` test images; None where the training images could not be read."""
        return None if self.leaked is None else int(self.leaked[:judged].sum())

    def leaks(self, judged: int) -> list[str]:
        """A flag where more than a few of the first `judged` test images are training images."""
        count = self.count_leaked(judged)
        if count is None or count <= LEAKED_SHARE * judged:
            return []
        return [
            f"test-in-training: {count} of {judged} test images are also among the training images"
        ]


def among(test: Images, train: Images) -> Tensor:
    """bool [N]: which of the test images are images of train, pixel for pixel."""
    wanted = dict(_digests(test))
    known = set(wanted.values())
    in_train = {digest for _, digest in _digests(train) if digest in known}
    return torch.tensor([wanted[row] in in_train for row in range(len(test))])


def _digests(images: Images) -> Iterator[tuple[int, bytes]]:
    """Of the pixels of each, and which row it is."""
    for rows, piece in images.pieces():
        for row, image in zip(rows.tolist(), piece.images.numpy(), strict=True):
            yield row, hashlib.sha256(flat(image)).digest()


def check_classes(card: Mapping[str, Any], name: str, there: Facts, model: str) -> list[str]:
    """A flag where classes of the data set have other names than those that the model knows.

    card: the model's `model.json`. Raises `UserError` where it cannot be judged on them at all.
    """
    known_classes, sides = card["classes"], card["input_shape"]
    if list(there.shape) != sides:
        raise UserError(
            f"--data {name}: its images are {_by(there.shape)}, and {model} takes {_by(sides)}"
        )
    if len(known_classes) != len(there.classes):
        raise UserError(
            f"--data {name}: has {len(there.classes)} classes, and {model} knows "
            f"{len(known_classes)}"
        )
    differ = [i for i, theirs in enumerate(there.classes) if theirs != known_classes[i]]
    if not differ:
        return []
    first = differ[0]
    return [
        f"other-classes: what is {there.classes[first]!r} in {name} is {known_classes[first]!r} to "
        f"the model ({len(differ)} of {len(known_classes)} classes have another name)"
    ]


def _by(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))
