"""Our networks with the gradient of the input alone written out: what crafting on a CPU asks for.

To autograd a network is one operation here, not a hundred. Convolutions do ReLU and residual sums
themselves (oneDNN's post-operations, those that torch.compile uses), and gradients are masked where
they stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fmoe.fast.layers import Layer, convolutions, known, layers, of_blocks
from fmoe.models.branches import Branches, head_weights
from fmoe.models.experts import Normalize, ResNet18
from fmoe.models.gates import ConvNet
from fmoe.models.mixture import BranchedMixture, Mixture
from fmoe.models.small_maps import (
    by_matrices,
    by_windows,
    input_of_windows,
    is_dense,
    is_of_windows,
    matrices,
)
from fmoe.numerics.precision import at_least_float32

aten, onednn = torch.ops.aten, torch.ops.mkldnn


def written_out(model: nn.Module) -> nn.Module:
    """`model` (folded: `fmoe.fast.folding`) with its networks, or itself, in that form; it shares
    its weights. What is not known from inside is left as it is, and all of it on a GPU, where
    convolutions and the rest are launched apart anyway (not measured there)."""
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        return model
    if known(model):
        return WrittenOut(model)
    if isinstance(model, BranchedMixture):
        model.gate = written_out(model.gate)
        if model.body.trunk.pool is None:
            model.body = WrittenOutBranches(model.body)
    elif isinstance(model, Mixture):
        model.gate = written_out(model.gate)
        model.experts = nn.ModuleList(map(written_out, model.experts))
    return model


Matrices = dict[tuple[int, torch.Size], Tensor]


class Form(Protocol):
    """What is written out: layers on the normalised image, and what is made of their values.

    matrices: by the layer's place and the map's size, made anew after each `refresh`.
    """

    normalize: Normalize
    layers: list[Layer]
    matrices: Matrices

    def outputs(self, values: Sequence[Tensor]) -> tuple[Tensor, ...]: ...

    def gradients(
        self, values: Sequence[Tensor], of_outputs: Sequence[Tensor]
    ) -> dict[int, Tensor]:
        """Of values, by their places, from those of the outputs."""


class WrittenOut(nn.Module):
    """Images [B,C,H,W] to logits [B,K], in the weights' precision whatever autocast says."""

    def __init__(self, network: ResNet18 | ConvNet):
        super().__init__()
        self.network, self.normalize = network, network.normalize
        self.layers, self.matrices = layers(network), Matrices()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        with torch.autocast(x_BCHW.device.type, enabled=False):
            (logits,) = InputGradient.apply(x_BCHW, self)
        return logits  # type: ignore[no-any-return]

    def outputs(self, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (self.network.head(values[-1].mean((2, 3))),)

    def gradients(
        self, values: Sequence[Tensor], of_outputs: Sequence[Tensor]
    ) -> dict[int, Tensor]:
        (of_logits,) = of_outputs
        return {len(self.layers): of_mean(of_logits @ self.network.head.weight, values[-1])}


class WrittenOutBranches(Branches):
    """The same of a trunk and its branches, whose convolutions are parts of wide ones."""

    def __init__(self, body: Branches):
        super().__init__(body.trunk, body.branches)
        self.normalize, self.matrices = self.trunk.normalize, Matrices()
        trunk, blocks, count = layers(self.trunk), [], len(self.branches)
        columns = zip(*(branch.blocks for branch in self.branches), strict=True)
        for place, column in enumerate(columns):
            groups = count if place else 1
            first, second, shortcuts = zip(*map(convolutions, column), strict=True)
            there = [conv for conv in shortcuts if conv is not None]
            shortcut = widened(there, groups) if there else None
            blocks.append((widened(first, groups), widened(second, count), shortcut))
        self.of_trunk = len(trunk)  # the place of what it gives
        self.layers = [*trunk, *of_blocks(blocks, self.of_trunk)]

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x_BCHW.device.type, enabled=False):
            features, logits = InputGradient.apply(x_BCHW, self)
        return at_least_float32(features), at_least_float32(logits)

    def outputs(self, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        weight_EKC, bias_EK = head_weights(self.branches)
        pooled = torch.unflatten(values[-1].mean((2, 3)), 1, (len(self.branches), -1))
        by_expert = pooled.transpose(0, 1), weight_EKC.transpose(1, 2)
        logits_EBK = torch.baddbmm(bias_EK[:, None], *by_expert)
        return values[self.of_trunk].mean((2, 3)), logits_EBK.transpose(0, 1)

    def gradients(
        self, values: Sequence[Tensor], of_outputs: Sequence[Tensor]
    ) -> dict[int, Tensor]:
        of_features, of_logits_BEK = of_outputs
        weight_EKC, _ = head_weights(self.branches)
        of_pooled = torch.bmm(of_logits_BEK.transpose(0, 1), weight_EKC).transpose(0, 1)
        return {
            self.of_trunk: of_mean(of_features, values[self.of_trunk]),
            len(self.layers): of_mean(of_pooled.flatten(1), values[-1]),
        }


def widened(convs: Sequence[nn.Conv2d], groups: int) -> nn.Conv2d:
    """The convolutions of one shape as one, whose weights' parts are theirs from now on; groups: 1
    where all read the same."""
    first = convs[0]
    with torch.device("meta"):
        wide = type(first)(
            first.in_channels * groups,
            first.out_channels * len(convs),
            first.kernel_size,  # type: ignore[arg-type]
            first.stride,  # type: ignore[arg-type]
            first.padding,  # type: ignore[arg-type]
            groups=groups,
        )
    for name in ("weight", "bias"):
        parts = [getattr(conv, name) for conv in convs]
        whole = torch.cat([part.detach() for part in parts])
        setattr(wide, name, nn.Parameter(whole, requires_grad=False))
        for part, own in zip(parts, whole.chunk(len(convs)), strict=True):
            part.data = own
    return wide


def of_mean(gradient_BC: Tensor, value_BChw: Tensor) -> Tensor:
    """The gradient of a value from that of its mean over rows and columns."""
    height, width = value_BChw.shape[2:]
    share = (gradient_BC / (height * width)).to(value_BChw.dtype)
    spread = share[:, None, None].expand(-1, height, width, -1)
    return spread.contiguous().permute(0, 3, 1, 2)


class InputGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, form: Form) -> tuple[Tensor, ...]:
        values = [form.normalize(x_BCHW).to(form.layers[0].conv.weight.dtype)]
        for place, layer in enumerate(form.layers, 1):
            added = None if layer.added is None else values[layer.added]
            if added is not None and layer.shortcut is not None:
                added = layer.shortcut(added)
            small = by_product(form, place, values[layer.source])
            values.append(rectified(layer.conv, values[layer.source], added, small))
        ctx.form = form
        ctx.save_for_backward(*values)
        return form.outputs(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *of_outputs: Tensor) -> tuple[Tensor, None]:
        values, form = ctx.saved_tensors, ctx.form
        waiting = form.gradients(values, of_outputs)

        def pass_on(place: int, gradient: Tensor) -> None:
            waiting[place] = waiting[place].add_(gradient) if place in waiting else gradient

        for place, layer in reversed(list(enumerate(form.layers, 1))):
            gradient = waiting.pop(place)
            aten.threshold_backward.grad_input(gradient, values[place], 0, grad_input=gradient)
            matrix = form.matrices.get((place, values[place].shape[2:]))
            pass_on(layer.source, of_input(layer.conv, gradient, values[layer.source], matrix))
            if layer.shortcut is not None:
                gradient = of_input(layer.shortcut, gradient, values[layer.added])
            if layer.added is not None:
                pass_on(layer.added, gradient)
        return waiting[0] / form.normalize.std, None


def by_product(form: Form, place: int, x: Tensor) -> Tensor | None:
    """What a layer's convolution gives on a small map."""
    conv = form.layers[place - 1].conv
    if is_dense(conv, x):
        at = (place, x.shape[2:])
        if at not in form.matrices:
            form.matrices[at] = matrices(conv.weight, conv.groups, *x.shape[2:])
        return by_matrices(x, form.matrices[at], conv.bias)
    if is_of_windows(conv, x):
        return by_windows(x, conv.weight, conv.bias, conv.stride[0])
    return None


def rectified(conv: nn.Conv2d, x: Tensor, added: Tensor | None, product: Tensor | None) -> Tensor:
    """relu(conv(x) + added); product: conv(x), where that is known."""
    out: Tensor
    # of groups oneDNN does not take the sum along
    if product is not None or not fusing(x.dtype) or (conv.groups > 1 and added is not None):
        out = conv(x) if product is None else product
        return F.relu_(out if added is None else out.add_(added))
    fused = onednn._convolution_pointwise
    shape = conv.padding, conv.stride, conv.dilation, conv.groups
    if added is None:
        out = fused(x, conv.weight, conv.bias, *shape, "relu", [], "")
    else:
        both = x, added, conv.weight, conv.bias, *shape
        out = fused.binary(*both, "add", 1.0, "relu", [], "")
    return out


@cache
def fusing(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there, for this precision; its operators are not torch's public ones."""
    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not (there and hasattr(onednn, "_convolution_pointwise")):
        return False
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and onednn._is_mkldnn_bf16_supported()
    )


def of_input(conv: nn.Conv2d, gradient: Tensor, x: Tensor, matrix: Tensor | None = None) -> Tensor:
    """The gradient of conv's input x, by that of its output; matrix: of `matrices`."""
    if matrix is not None:
        return by_matrices(gradient, matrix.transpose(1, 2), None)
    if is_of_windows(conv, x):
        return input_of_windows(gradient, conv.weight, x, conv.stride[0])
    shape = conv.stride, conv.padding, conv.dilation, False, [0, 0], conv.groups
    wanted: Tensor = aten.convolution_backward(
        gradient, x, conv.weight, None, *shape, [True, False, False]
    )[0]
    return wanted
