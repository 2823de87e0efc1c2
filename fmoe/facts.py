"""What a network must know of the images that it is for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Facts:
    """shape: [C,H,W]; classes: their names, in the order of the labels; mean, std: per channel, of
    pixels in [0,1]. A model's outputs depend on these as they do on its weights."""

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def plain(self) -> dict[str, Any]:
        """As JSON-like values."""
        return {name: list(value) for name, value in asdict(self).items()}
