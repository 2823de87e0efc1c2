"""Our networks with the gradient of the input alone written out: what crafting on a CPU asks for.

To autograd a network is one operation here, not a hundred. Convolutions do ReLU and residual sums
themselves (oneDNN's post-operations, those that torch.compile uses), and gradients are masked where
they stand.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fmoe.fast.layers import known, layers
from fmoe.models.experts import ResNet18
from fmoe.models.gates import ConvNet
from fmoe.models.mixture import Mixture

aten, onednn = torch.ops.aten, torch.ops.mkldnn


def written_out(model: nn.Module) -> nn.Module:
    """`model` (folded: `fmoe.fast.folding`) with its networks, or itself, in that form; it shares
    its weights. What is not known from inside is left as it is, and all of it on a GPU, where
    convolutions and the rest are launched apart anyway (not measured there)."""
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        return model
    if known(model):
        return WrittenOut(model)
    if isinstance(model, Mixture):
        model.gate = written_out(model.gate)
        model.experts = nn.ModuleList(map(written_out, model.experts))
    return model


class WrittenOut(nn.Module):
    """Images [B,C,H,W] to logits [B,K], in the weights' precision whatever autocast says."""

    def __init__(self, network: ResNet18 | ConvNet):
        super().__init__()
        self.network, self.layers = network, layers(network)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        with torch.autocast(x_BCHW.device.type, enabled=False):
            logits: Tensor = InputGradient.apply(x_BCHW, self)
        return logits


class InputGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, module: WrittenOut) -> Tensor:
        network, head = module.network, module.network.head
        values = [network.normalize(x_BCHW).to(head.weight.dtype)]
        for layer in module.layers:
            added = None if layer.added is None else values[layer.added]
            if added is not None and layer.shortcut is not None:
                added = layer.shortcut(added)
            values.append(rectified(layer.conv, values[layer.source], added))
        ctx.module = module
        ctx.save_for_backward(*values)
        logits: Tensor = head(values[-1].mean((2, 3)))
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BK: Tensor) -> tuple[Tensor, None]:
        values, module = ctx.saved_tensors, ctx.module
        last = values[-1]
        pooled = gradient_BK @ module.network.head.weight / last[0, 0].numel()
        spread = pooled[:, :, None, None].expand_as(last)
        waiting = {len(module.layers): spread.contiguous(memory_format=torch.channels_last)}

        def pass_on(place: int, gradient: Tensor) -> None:
            waiting[place] = waiting[place].add_(gradient) if place in waiting else gradient

        for place, layer in reversed(list(enumerate(module.layers, 1))):
            gradient = waiting.pop(place)
            aten.threshold_backward.grad_input(gradient, values[place], 0, grad_input=gradient)
            pass_on(layer.source, of_input(layer.conv, gradient, values[layer.source]))
            if layer.shortcut is not None:
                gradient = of_input(layer.shortcut, gradient, values[layer.added])
            if layer.added is not None:
                pass_on(layer.added, gradient)
        return waiting[0] / module.network.normalize.std, None


def rectified(conv: nn.Conv2d, x: Tensor, added: Tensor | None) -> Tensor:
    """relu(conv(x) + added)."""
    out: Tensor
    if not fusing(x.dtype):
        out = conv(x)
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


def of_input(conv: nn.Conv2d, gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient of conv's input x, by that of its output."""
    shape = conv.stride, conv.padding, conv.dilation, False, [0, 0], conv.groups
    wanted: Tensor = aten.convolution_backward(
        gradient, x, conv.weight, None, *shape, [True, False, False]
    )[0]
    return wanted
