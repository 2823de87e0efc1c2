"""ResNet-18 as it is used on CIFAR: its size, its shapes, normalisation inside."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmoe.models import experts
from fmoe.models.backbone import Backbone
from fmoe.models.backbones import ResNet18Backbone
from fmoe.models.branches import convolved
from fmoe.models.experts import (
    BasicBlock,
    Conv3x3,
    Normalize,
    Pointwise,
    PreActResNet18,
    ResNet18,
    WideResNet,
)
from fmoe.models.small_maps import pays_in_training

RGB = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
GREY = (0.3053,), (0.3760,)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_width_64_has_the_parameters_of_resnet18_on_cifar() -> None:
    # stem 3*64*9 + 128; stages 147,968 + 525,568 + 2,099,712 + 8,393,728; head 512*10 + 10
    assert 1856 + 147_968 + 525_568 + 2_099_712 + 8_393_728 + 5130 == 11_173_962
    mean, std = RGB
    assert parameters(ResNet18(mean=mean, std=std, classes=10)) == 11_173_962


@pytest.mark.parametrize("width", [1, 4, 8, 16])
def test_width_scales_every_layer(width: int) -> None:
    mean, std = RGB
    stages = [(width, width), (width, 2 * width), (2 * width, 4 * width), (4 * width, 8 * width)]
    count = 3 * 9 * width + 2 * width + 8 * width * 10 + 10  # stem, its norm, head
    for before, after in stages:
        count += 9 * before * after + 3 * 9 * after * after + 4 * 2 * after
        count += before * after + 2 * after if before != after else 0  # the 1x1 shortcut
    assert parameters(ResNet18(mean=mean, std=std, classes=10, width=width)) == count


@pytest.mark.parametrize(
    "backbone", [ResNet18Backbone(width=4), ResNet18Backbone(width=3, stem="patch")]
)
@pytest.mark.parametrize(
    ("normalisation", "shape"), [(RGB, (3, 32, 32)), (GREY, (1, 8, 8)), (RGB, (3, 17, 23))]
)
def test_images_become_logits(
    backbone: Backbone,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]],
    shape: tuple[int, int, int],
) -> None:
    mean, std = normalisation
    net = backbone.build(shape=shape, mean=mean, std=std, classes=7)
    logits = net(torch.rand(5, *shape))
    assert logits.shape == (5, 7)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@pytest.mark.parametrize(("channels", "stride"), [(8, 1), (16, 2)])
def test_block_is_torchvisions(channels: int, stride: int) -> None:
    from torchvision.models import resnet

    torch.manual_seed(0)
    ours = BasicBlock(8, channels, stride)
    theirs = resnet.BasicBlock(8, channels, stride, copy.deepcopy(ours.downsample))
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(3, 8, 6, 6)
    for training in (True, False):
        found = [block.train(training)(x).square().sum() for block in (ours, theirs)]
        assert torch.equal(*found)
    for loss in found:
        torch.autograd.backward(loss)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


def test_the_stem_keeps_the_resolution() -> None:
    net = ResNet18(mean=GREY[0], std=GREY[1], classes=10, width=4)
    assert net.conv(torch.rand(2, 1, 8, 8)).shape == (2, 4, 8, 8)
    assert net.blocks(torch.rand(2, 4, 8, 8)).shape == (2, 32, 1, 1)


def test_a_stem_of_patches_halves_it() -> None:
    net = ResNet18(mean=RGB[0], std=RGB[1], classes=10, width=4, stem="patch")
    assert net.conv(torch.rand(2, 3, 32, 32)).shape == (2, 4, 16, 16)
    assert net.blocks(torch.rand(2, 4, 16, 16)).shape == (2, 32, 2, 2)
    full = ResNet18(mean=RGB[0], std=RGB[1], classes=10, width=4)
    assert parameters(net) - parameters(full) == 4 * 3 * (4 * 4 - 3 * 3)


def test_the_imagenet_stem_is_torchvisions_network() -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    theirs, x = resnet18(num_classes=7).eval(), torch.rand(2, 3, 64, 48)
    names = {"conv1.": "conv.", "bn1.": "bn.", "fc.": "head."}
    names |= {f"layer{s + 1}.{b}.": f"blocks.{2 * s + b}." for s in range(4) for b in range(2)}
    ours = ResNet18(mean=(0.0,) * 3, std=(1.0,) * 3, classes=7, stem="imagenet").eval()
    state = {}
    for key, value in theirs.state_dict().items():
        (new,) = (new + key.removeprefix(old) for old, new in names.items() if key.startswith(old))
        state[new] = value
    ours.load_state_dict(state)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("depth", "width", "count"), [(28, 10, 36_479_194), (34, 10, 46_160_474), (16, 4, 2_748_890)]
)
def test_wide_resnets_have_the_published_sizes(depth: int, width: int, count: int) -> None:
    """36.5 and 46.2 million in arXiv 1605.07146 and RobustBench, 2.75 in the former."""
    with torch.device("meta"):
        net = WideResNet(mean=RGB[0], std=RGB[1], classes=10, depth=depth, width=width)
    assert parameters(net) == count


def test_wide_resnet_by_its_stages() -> None:
    net = WideResNet(mean=RGB[0], std=RGB[1], classes=10, depth=10, width=1).eval()
    x = torch.rand(2, 3, 32, 32)
    assert [net.blocks[:n](net.conv(x)).shape[1:] for n in (1, 2, 3)] == [
        (16, 32, 32), (32, 16, 16), (64, 8, 8)
    ]  # fmt: skip
    assert getattr(net.blocks[0], "downsample", 1) is None, "16 channels stay 16: nothing to fit"
    assert net(x).shape == (2, 10)


def test_normalize_by_hand() -> None:
    # (0.5 - 0.25) / 0.5 = 0.5 and (0.5 - 0.75) / 0.25 = -1
    found = Normalize((0.25, 0.75), (0.5, 0.25))(torch.full((1, 2, 1, 1), 0.5))
    assert found.flatten().tolist() == [0.5, -1.0]


def test_normalisation_is_inside() -> None:
    torch.manual_seed(0)
    net = ResNet18(mean=RGB[0], std=RGB[1], classes=10, width=4).eval()
    x = torch.rand(3, 3, 32, 32)
    normalized = (x - torch.tensor(RGB[0]).view(3, 1, 1)) / torch.tensor(RGB[1]).view(3, 1, 1)
    expected = net(x)
    net.normalize = Normalize((0.0,) * 3, (1.0,) * 3)
    torch.testing.assert_close(net(normalized), expected)


def test_mean_and_std_are_no_part_of_the_weights() -> None:
    state = ResNet18(mean=RGB[0], std=RGB[1], classes=10, width=4).state_dict()
    assert not [name for name in state if name.startswith("normalize")]


def test_initial_logits_differ_between_images_and_stay_small() -> None:
    torch.manual_seed(0)
    logits = ResNet18(mean=GREY[0], std=GREY[1], classes=10, width=4)(torch.rand(32, 1, 8, 8))
    assert logits.std(0).min() > 1e-3
    assert logits.abs().max() < 10


@pytest.mark.parametrize("of", [ResNet18, PreActResNet18])
@pytest.mark.parametrize("pixels", [12, 16])
def test_training_pass_on_small_maps_is_the_librarys(
    of: type[ResNet18 | PreActResNet18], pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = of(mean=GREY[0], std=GREY[1], classes=10, width=16).double().train()
    x = torch.rand(8, 1, pixels, pixels, dtype=torch.float64, requires_grad=True)
    asked = list[torch.Size]()

    def spied(conv: nn.Conv2d, x_BCHW: Tensor) -> bool:
        paid = pays_in_training(conv, x_BCHW)
        asked.extend([x_BCHW.shape[1:]] if paid else [])
        return paid

    def gradients(way: Callable[[nn.Conv2d, Tensor], bool]) -> tuple[Tensor, ...]:
        monkeypatch.setattr(experts, "pays_in_training", way)
        return torch.autograd.grad(network(x).square().sum(), [x, *network.parameters()])

    ours, theirs = gradients(spied), gradients(lambda *_: False)
    before = -(-pixels // 4)
    assert asked == [(64, before, before), *3 * [(128, 2, 2)]]  # the last stage
    for own, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, expected)


def test_training_pass_of_few_channels_large_maps_and_evaluation_are_left_to_the_library() -> None:
    many, few = nn.Conv2d(128, 128, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1)
    assert pays_in_training(many, torch.rand(1, 128, 2, 2))
    assert not pays_in_training(many, torch.rand(1, 128, 3, 3))
    assert not pays_in_training(few, torch.rand(1, 16, 2, 2))
    layer, x = Conv3x3(128, 128, 3, 1, 1, bias=False).eval(), torch.rand(2, 128, 2, 2)
    assert layer(x).equal(F.conv2d(x, layer.weight, padding=1))


@pytest.mark.parametrize("channels", [1, 2, 4, 8, 12, 16])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradient_of_a_pointwise_convolution_is_float64s(channels: int, stride: int) -> None:
    """oneDNN #6035: without AVX-512 it is wrong for four channels, and the process dies."""
    x = torch.rand(32, channels, 8, 8).to(memory_format=torch.channels_last)
    layer = Pointwise(channels, 8, 1, stride, bias=False)
    exact = nn.Conv2d(channels, 8, 1, stride, bias=False).double()
    exact.weight.data.copy_(layer.weight.data)
    grown = torch.rand(32, 8, 8 // stride, 8 // stride)
    layer(x).backward(grown)
    exact(x.double()).backward(grown.double())
    assert layer.weight.grad is not None
    assert exact.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad.double(), exact.weight.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [2, 4, 8, 16])
def test_gradient_of_pointwise_convolutions_side_by_side_is_float64s(channels: int) -> None:
    """As above: branches are not asked one by one."""
    x = torch.rand(32, channels, 8, 8).to(memory_format=torch.channels_last)
    layers = [Pointwise(channels, 8, 1, 2, bias=False) for _ in range(3)]
    weights = [layer.weight.detach().double().requires_grad_() for layer in layers]
    grown = torch.rand(32, 24, 4, 4)
    found = torch.autograd.grad(convolved(layers, x, 1), [layer.weight for layer in layers], grown)
    for ours, weight, part in zip(found, weights, grown.double().chunk(3, 1), strict=True):
        seen = F.conv2d(x.double(), weight, stride=2)
        (gradient,) = torch.autograd.grad(seen, weight, part)
        torch.testing.assert_close(ours.double(), gradient, rtol=1e-5, atol=1e-5)
