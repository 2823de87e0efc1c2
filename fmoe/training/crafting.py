"""What training crafts adversarial images on: a copy of the model, refreshed once a step."""

from __future__ import annotations

from torch import nn

from fmoe.fast.folding import Twin
from fmoe.fast.written_out import WrittenOut, WrittenOutBranches, written_out
from fmoe.models.mixture import BranchedMixture, Mixture
from fmoe.numerics.precision import Numerics


def crafting_view(model: nn.Module, numerics: Numerics) -> Twin:
    """The model's folded twin in the form that is fastest here: compiled where that is asked for,
    its gradient written out otherwise. Call its module under `numerics.autocast`."""
    twin = Twin(model, numerics.weights)
    if not numerics.compile:
        twin.module = written_out(twin.module)
        forms = (WrittenOut, WrittenOutBranches)
        twin.made_of_weights = [m.matrices for m in twin.module.modules() if isinstance(m, forms)]
    elif isinstance(twin.module, BranchedMixture):
        numerics.compile_parts([twin.module.body], graphs=not twin.module.checkpointing)
    elif isinstance(twin.module, Mixture):
        numerics.compile_parts(twin.module.experts, graphs=not twin.module.checkpointing)
    else:
        numerics.compile_parts([twin.module])
    return twin
