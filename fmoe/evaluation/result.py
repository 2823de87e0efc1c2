"""What an evaluation says: findings, the flags that they raise, and both as JSON and as a table."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import torch

from fmoe.evaluation import figures, flags
from fmoe.evaluation.chunk import ATTACKED, BROKEN, CLEAN, PREDICTION
from fmoe.evaluation.findings import Findings
from fmoe.evaluation.intervals import wilson
from fmoe.evaluation.settings import PROTOCOL


class Evaluation(Findings):
    """What `evaluate` gives."""

    @property
    def flags(self) -> list[str]:
        """Reasons not to trust the figures, each `code: what was seen`."""
        return flags.raised(self)

    @property
    def notes(self) -> list[str]:
        """What the reader should know, and what stops nothing."""
        return flags.noted(self)

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
            "norm": self.settings.threat.norm,
            "seed": self.settings.seed,
            "fast": self.settings.fast,
            "protocol": PROTOCOL,
            "stages": list(self.settings.stages),
            "skipped": self.skipped,
            "mixture": figures.mixture(self.columns, self.labels, self.settings.experts),
            "sweeps": figures.sweeps(self.columns, self.right, self.settings.threat),
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
