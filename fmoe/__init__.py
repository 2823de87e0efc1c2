"""fmoe: adversarially robust mixtures of experts (Divided We Fall, arXiv 2512.20821).

Nothing heavy is imported until it is used, so that `import fmoe` and `fmoe --help` are quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fmoe.version import VERSION

if TYPE_CHECKING:
    import torch

__version__ = VERSION


def load(model: str, *, device: str = "cpu") -> torch.nn.Module:
    """The trained model in eval mode: float [B,C,H,W] in [0,1] to log-probabilities [B,K].

    `model` is a model folder, a run folder, or a registry URI such as
    `models:/fmoe-cifar10@candidate`. The module also has `gate_weights(x)` [B,E] and `experts`.

    Raises `fmoe.errors.UserError` where there is no such model or its digest is wrong.
    """
    from fmoe.locate import load_model

    return load_model(model, device=device)
