"""What every backbone is: a configuration that builds an expert's network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fmoe.schema import Spec


class Backbone(Spec):
    """What all backbones share."""

    def build(
        self, *, shape: Sequence[int], mean: Sequence[float], std: Sequence[float], classes: int
    ) -> nn.Module:
        """Images [B,C,H,W] in [0,1] (shape: [C,H,W]) to logits [B,K].

        The network normalises by mean and std (see `Normalize`), and its last layer is its
        attribute `head`, which is what `joint.update: heads` trains.
        """
        raise NotImplementedError

    @property
    def any_size(self) -> bool:
        """Its network takes images of other sizes than that it was built for."""
        return True

    def start(self, network: nn.Module) -> None:
        """Called once on a network whose training begins, after its weights were drawn."""
