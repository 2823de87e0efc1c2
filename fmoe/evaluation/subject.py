"""What is judged, as another process makes it again: its tensors come apart from it."""

from __future__ import annotations

from typing import Protocol

from torch import nn


class Subject(Protocol):
    """Something to judge: a new kind is a class with `build`.

    It goes to workers in a pickle: small (a configuration, the name of a function), nothing that
    another person wrote, and no tensors. Those of the module that is judged are sent once, and
    take the place of those that `build` gives. What an attack needs of a model is asked of the
    module (`fmoe.evaluation.plan`): what cannot judge it is left out, and `skipped` says why.
    """

    def build(self) -> nn.Module:
        """The module, from float images [B,C,H,W] in [0,1] to logits or log-probabilities [B,K]."""
        ...
