"""What an evaluation found: verdicts of every image, and the figures that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from fmoe.evaluation import chunk, figures
from fmoe.evaluation.chunk import ATTACKED, BROKEN, CLEAN, PREDICTION, Columns, share
from fmoe.evaluation.intervals import wilson
from fmoe.evaluation.settings import PROTOCOL, Settings


@dataclass(frozen=True)
class Evaluation:
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
    def flags(self) -> list[str]:
        """Reasons not to trust the figures, each `code: what was seen`."""
        from fmoe.evaluation.flags import raised

        return raised(self)

    @property
    def notes(self) -> list[str]:
        """What the reader should know, and what stops nothing."""
        from fmoe.evaluation.flags import noted

        return noted(self)

    def to_json(self) -> dict[str, Any]:
        n = self.images
        return {
            "clean": self.clean,
            "robust": self.robust,
            "worst_case": self.worst_case,
            "interval95": {k: list(wilson(round(v * n), n)) for k, v in self.figures.items()},
            "flags": self.flags,
            "notes": self.notes,
            "images": n,
            "eps": self.settings.eps,
            "norm": "linf",
            "seed": self.settings.seed,
            "fast": self.settings.fast,
            "protocol": PROTOCOL,
            "stages": list(self.settings.stages),
            "skipped": self.skipped,
            "mixture": figures.mixture(self.columns, self.labels, self.settings.experts),
            "sweeps": figures.sweeps(self.columns, self.right, self.settings.eps),
            "seconds": self.seconds,
            "attack_seconds": self.attack_seconds,
        }

    def table(self) -> pa.Table:
        """A row per image: image, label, prediction, then for each attack `prediction_NAME` and
        `success_NAME` (null where it was not run on the image), and `smallest_eps` (null where
        nothing was found to break the image; 0 where it is wrong without an attack)."""
        columns: dict[str, Any] = {
            "image": torch.arange(self.images).numpy(),
            "label": self.labels.numpy(),
            "prediction": self.columns[CLEAN].numpy(),
        }
        for name in self.verdicts:
            off = ~self.columns[ATTACKED + name].numpy()
            columns[f"prediction_{name}"] = pa.array(
                self.columns[PREDICTION + name].numpy(), mask=off
            )
            columns[f"success_{name}"] = pa.array(self.columns[BROKEN + name].numpy(), mask=off)
        smallest = self.smallest_eps
        columns["smallest_eps"] = pa.array(smallest.numpy(), mask=smallest.isinf().numpy())
        return pa.table(columns)

    @property
    def smallest_eps(self) -> Tensor:
        """float32 [N]: the smallest eps found to break an image; inf where none was."""
        found = self.columns.get("radius", torch.where(self.right, torch.inf, 0.0))
        at_eps = torch.where(self.survivors, torch.inf, self.settings.eps)
        return torch.minimum(found, at_eps).float().masked_fill(~self.right, 0.0)
