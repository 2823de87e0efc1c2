"""Single experts' curves: one artifact of a run, so that its metrics are the mixture's own.

Experts are shared by runs through the expert store, so that they are no child runs either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fmoe.documents import parse_json

FILE = "experts/curves.json"
LARGEST = 64 * 2**20  # bytes
History = dict[int, dict[str, float]]
"""Metrics by epoch."""


@dataclass
class Curves:
    """epochs: of each expert; about: what else is known of it."""

    epochs: dict[str, History] = field(default_factory=dict)
    about: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, data: bytes) -> Curves:
        """Raises `ValueError` for what is none."""
        curves = cls()
        try:
            for expert, told in parse_json(data).items():
                for epoch in told["epochs"]:
                    metrics = {str(key): float(value) for key, value in epoch.items()}
                    curves.add(expert, metrics, int(metrics.pop("epoch")))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{FILE}: no curves of experts") from error
        return curves

    def add(self, expert: str, metrics: Mapping[str, float], epoch: int) -> bool:
        """Whether they are new."""
        history = self.epochs.setdefault(expert, {})
        new = epoch not in history
        history.setdefault(epoch, dict(metrics))
        return new

    def to_json(self) -> dict[str, Any]:
        return {
            expert: {
                **self.about.get(expert, {}),
                "epochs": [{"epoch": epoch, **history[epoch]} for epoch in sorted(history)],
            }
            for expert, history in self.epochs.items()
        }
