"""Figures that are added up and multiplied together."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self


@dataclass(frozen=True)
class Totals:
    """A sum adds each figure to its like."""

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def times(self, factor: float) -> Self:
        return type(self)(*(factor * getattr(self, f.name) for f in fields(self)))
