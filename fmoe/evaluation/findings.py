"""Verdicts of every image, and the accuracies that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fmoe.evaluation import chunk
from fmoe.evaluation.chunk import BROKEN, Columns, share
from fmoe.evaluation.settings import Settings


@dataclass(frozen=True)
class Findings:
    """labels int64 [N]; columns: what every stage found, a row per image (see `chunk.Columns`).

    raised: flags of libraries. skipped: stage to the reason. attack_seconds: by stage.
    """

    settings: Settings
    labels: Tensor
    columns: Columns
    raised: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    attack_seconds: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def images(self) -> int:
        return len(self.labels)

    @property
    def right(self) -> Tensor:
        """bool [N]: classified as labelled, without an attack."""
        return chunk.right(self.columns, self.labels)

    @property
    def clean(self) -> float:
        return share(self.right)

    @property
    def verdicts(self) -> dict[str, Tensor]:
        """Attack to bool [N]: right under it. In the order in which they were run."""
        return {
            name.removeprefix(BROKEN): self.right & ~broken
            for name, broken in self.columns.items()
            if name.startswith(BROKEN)
        }

    @property
    def robust(self) -> dict[str, float]:
        return {name: share(verdict) for name, verdict in self.verdicts.items()}

    @property
    def survivors(self) -> Tensor:
        """bool [N]: right, and under every attack that was run."""
        return chunk.survivors(self.columns, self.labels)

    @property
    def worst_case(self) -> float:
        """The share of images that survive every attack that was run."""
        return share(self.survivors)

    @property
    def figures(self) -> dict[str, float]:
        """Clean accuracy, each attack's, and the worst case."""
        return {"clean": self.clean, **self.robust, "worst_case": self.worst_case}

    @property
    def smallest_eps(self) -> Tensor:
        """float32 [N]: the smallest eps found to break an image; inf where none was."""
        radius = self.columns.get("radius", torch.where(self.right, torch.inf, 0.0))
        at_eps = torch.where(self.survivors, torch.inf, self.settings.eps)
        return torch.minimum(radius, at_eps).float().masked_fill(~self.right, 0.0)
