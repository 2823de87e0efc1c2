"""What a network must know of the images that it is for, and what tells training data apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass


def printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("has characters that cannot be printed")
    return name


LARGEST_SIDE = 1024
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
Mean = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Std = Annotated[float, Field(ge=1e-4, le=1, allow_inf_nan=False)]
ClassName = Annotated[str, Field(max_length=1000), AfterValidator(printable)]
MOST_CLASSES = 10_000


@dataclass(frozen=True, config=ConfigDict(strict=True))
class Facts:
    """shape: [C,H,W]; classes: their names, in the order of the labels; mean, std: per channel, of
    pixels in [0,1]. A model's outputs depend on these as they do on its weights.

    A model folder holds them. Raises `ValueError` for what no images have.
    """

    shape: tuple[Side, Side, Side]
    classes: Annotated[tuple[ClassName, ...], Field(min_length=2, max_length=MOST_CLASSES)]
    mean: tuple[Mean, ...]
    std: tuple[Std, ...]

    @model_validator(mode="after")
    def _a_value_a_channel(self) -> Self:
        check_channels(self.shape[0], self.mean, self.std)
        return self

    def plain(self) -> dict[str, Any]:
        """As JSON-like values."""
        return {name: list(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Identity:
    """Training data but for their pixels: enough to build networks for them, and for the key of
    what is trained on them.

    train_digest: sha256 over the published training images and labels, whatever files they came
    from; val_images: how many of them are kept for validation; streamed: whether an epoch takes
    them in the order of `fmoe.data.streamed`.
    """

    facts: Facts
    train_digest: str
    val_images: int
    streamed: bool = False

    def plain(self) -> dict[str, Any]:
        split = {"digest": self.train_digest, "val_images": self.val_images}
        order = {"streamed": True} if self.streamed else {}
        return {**split, **order, **self.facts.plain()}


def check_channels(channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise ValueError(f"{name}: {len(values)} values for {channels} channels")
