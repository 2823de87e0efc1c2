"""Somebody else's model, images and labels: what is taken, and what is refused in one line."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fmoe.attacks.threat import Linf, threat_model
from fmoe.data import Data, Split
from fmoe.errors import UserError
from fmoe.evaluation import FULL, Settings, evaluate
from fmoe.models.mixture import Mixture
from tests.test_hostile_models import mlp, seeded, trained

EPS = 0.1


@pytest.fixture(scope="module")
def net(digits: Data) -> nn.Module:
    return seeded(lambda: trained(mlp(), digits))


@pytest.fixture(scope="module")
def part(digits: Data) -> Split:
    return digits.test[:30]


def refusal(model: Any, images: Any, labels: Any, **options: Any) -> str:
    """The line of the error."""
    given: dict[str, Any] = {"attacks": ["fgsm"], "eps": EPS} | options
    with pytest.raises(UserError) as caught:
        evaluate(model, images, labels, **given)
    line = str(caught.value)
    assert "\n" not in line
    return line


Change = Callable[[Tensor], Any]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x[:20], "labels: 30 for 20 images"),
        (lambda x: x[:0], "no images"),
        (lambda x: x.float() / 255, "uint8 .*normalisation belongs inside"),
        (lambda x: x.to(torch.int16), "uint8"),
        (lambda x: x.numpy().astype(np.float32), "ndarray of float32"),
        (lambda x: x.permute(0, 2, 3, 1), r"channels last.*permute\(0, 3, 1, 2\)"),
        (lambda x: x.permute(0, 2, 3, 1).numpy(), r"permute\(0, 3, 1, 2\)"),
        (lambda x: x.expand(-1, 3, -1, -1).permute(0, 2, 3, 1), r"permute\(0, 3, 1, 2\)"),
        (lambda x: x[:, 0], r"shape \(30, 8, 8\)"),
        (lambda x: x[0], r"shape \(1, 8, 8\)"),
        (lambda x: x[:, :, :0], "without a pixel"),
        (lambda x: list(x), "list"),
        (lambda _: None, "NoneType"),
        (lambda x: x.expand(-1, 3, -1, -1), r"model: fails on .*\(2, 3, 8, 8\)"),
    ],
)
def test_images_that_are_refused(net: nn.Module, part: Split, change: Change, says: str) -> None:
    line = refusal(net, change(part.images), part.labels)
    assert line.startswith(("images: ", "labels: 30 for", "model: fails"))
    assert re.search(says, line), line


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda y: y[:25], "25 for 30 images"),
        (lambda y: torch.cat([y, y]), "60 for 30 images"),
        (lambda y: y[:, None], "labels[:, 0]"),
        (lambda y: nn.functional.one_hot(y, 10), "argmax(1)"),
        (lambda y: y.float(), "float32"),
        (lambda y: y.bool(), "bool"),
        (lambda y: y.to(torch.complex64), "complex64"),
        (lambda y: y.numpy().astype(np.float64), "float64"),
        (lambda y: y.numpy().astype(bool), "bool"),
        (lambda y: y.numpy().astype(str), "whole numbers"),
        (lambda y: [str(label) for label in y.tolist()], "a str in a list"),
        (lambda y: [float(label) for label in y.tolist()], "a float in a list"),
        (lambda y: [bool(label) for label in y.tolist()], "a bool in a list"),
        (lambda y: y + 1, "the model has 10 classes, 0..9"),
        (lambda y: y - 1, "-1 is among them"),
        (lambda y: y.numpy().astype(np.uint64) + 2**63, "from 0 on"),
        (lambda _: None, "NoneType"),
        (lambda _: 3, "int"),
    ],
)
def test_labels_that_are_refused(net: nn.Module, part: Split, change: Change, says: str) -> None:
    line = refusal(net, part.images, change(part.labels))
    assert line.startswith("labels: ")
    assert says in line


@pytest.mark.parametrize(
    "change",
    [
        lambda x, y: (x.numpy(), y.numpy()),
        lambda x, y: (x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), y.tolist()),
        lambda x, y: (x, y.to(torch.uint8)),
        lambda x, y: (x, y.int()),
        lambda x, y: (x.numpy()[:, :, ::-1][:, :, ::-1], y.numpy().astype(np.uint16)),
        lambda x, y: (x, tuple(y.tolist())),
    ],
)
def test_the_same_in_another_form_gives_the_same(
    net: nn.Module, part: Split, change: Callable[[Tensor, Tensor], tuple[Any, Any]]
) -> None:
    plain = evaluate(net, part.images, part.labels, attacks=["fgsm", "pgd"], eps=EPS)
    images, labels = change(part.images, part.labels)
    found = evaluate(net, images, labels, attacks=["fgsm", "pgd"], eps=np.float64(EPS))
    assert found.figures == plain.figures
    for name, column in plain.columns.items():
        assert torch.equal(found.columns[name], column)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        *(({"eps": eps}, "eps: ") for eps in (float("nan"), -0.1, 1.5, float("inf"), True, "8/255",
                                             None, torch.tensor(0.1), 1j)),
        *(({"batch_size": size}, "batch_size: ") for size in (0, -1, 2.5, True, None, "10")),
        *(({"seed": seed}, "seed: ") for seed in (1.5, None, True, 2**64)),
        ({"attacks": "fgsm"}, "attacks: 'fgsm' is one string"),
        ({"attacks": ["fgsm", "fgms"]}, "unknown attack 'fgms'"),
        ({"attacks": [3]}, "unknown attack 3"),
        ({"attacks": None}, "attacks: NoneType"),
        ({"device": "gpu"}, "device: 'gpu'"),
        ({"device": 1.5}, "device: 1.5"),
        ({"selected_on": "train"}, "selected_on: 'train'"),
    ],
)  # fmt: skip
def test_options_that_are_refused(
    net: nn.Module, part: Split, options: dict[str, Any], says: str
) -> None:
    assert says in refusal(net, part.images, part.labels, **options)


@pytest.mark.parametrize("eps", [float("nan"), -0.1, 1.5, float("inf"), True])
def test_settings_are_the_gate_for_every_caller(eps: float) -> None:
    with pytest.raises(UserError, match=r"^eps: "):
        Settings(("pgd",), threat_model("linf", eps))
    with pytest.raises(UserError, match=r"^batch_size: "):
        Settings(("pgd",), Linf(eps=0.1), 0)


class Answering(nn.Module):
    """What a net gives, changed; where: on all images, or on attacked ones alone."""

    def __init__(self, net: nn.Module, change: Callable[[Tensor], Any], *, attacked: bool = False):
        super().__init__()
        self.net, self.change, self.attacked = net, change, attacked

    def forward(self, x: Tensor) -> Any:
        z = self.net(x)
        return self.change(z) if not self.attacked or _moved(x) else z


def _moved(x: Tensor) -> bool:
    return bool(((x * 255 - (x * 255).round()).abs() > 1e-3).any())


@pytest.mark.parametrize("attacked", [False, True])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda z: (z, z), "a tuple"),
        (lambda z: {"logits": z}, "a dict"),
        (lambda _: None, "a NoneType"),
        (lambda z: z.detach().numpy(), "a ndarray"),
        (lambda z: z.argmax(1), "int64"),
        (lambda z: z.long(), "int64"),
        (lambda z: z.to(torch.complex64), "complex64"),
        (lambda z: z[:-1], "expected ["),
        (lambda z: torch.cat([z, z]), "expected ["),
        (lambda z: z[:, 0], "expected ["),
        (lambda z: z[:, :1], "at least 2"),
        (lambda z: z[:, :, None], "expected ["),
    ],
)
def test_outputs_that_are_refused(
    net: nn.Module, part: Split, change: Callable[[Tensor], Any], says: str, attacked: bool
) -> None:
    line = refusal(Answering(net, change, attacked=attacked), part.images, part.labels)
    assert line.startswith("model: ")
    assert says in line


def test_the_number_of_classes_stays(net: nn.Module, part: Split) -> None:
    model = Answering(net, lambda z: torch.cat([z, z - 9], 1), attacked=True)
    assert "gave 10 classes, and now 20" in refusal(model, part.images, part.labels)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda net: copy.deepcopy(net).double(), "torch.float64: model.float()"),
        (lambda net: copy.deepcopy(net).half(), "torch.float16: model.float()"),
        (lambda net: net.forward, "expected a torch.nn.Module"),
        (lambda _: nn.Linear, "the class Linear"),
        (lambda _: None, "a NoneType"),
    ],
)
def test_models_that_are_refused(
    net: nn.Module, part: Split, build: Callable[[nn.Module], Any], says: str
) -> None:
    line = refusal(build(net), part.images, part.labels)
    assert line.startswith("model: ")
    assert says in line


class Worn(nn.Module):
    """Changes what it keeps, and its input."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.asked = net, 0
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        self.asked += 1
        outputs: Tensor = self.net(self.norm(x.clamp_(0, 1)) * 1.00001)
        return outputs


def test_the_callers_model_stays_as_it_is(net: nn.Module, part: Split) -> None:
    model = Worn(copy.deepcopy(net)).train()
    model.net.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grads = {name: tensor.requires_grad for name, tensor in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    images = part.images.clone()
    found = evaluate(model, images, part.labels, attacks=["fgsm", "pgd"], eps=EPS)
    assert found.clean > 0.8
    assert model.asked == 0
    assert torch.equal(images, part.images)
    assert [module.training for module in model.modules()] == modes
    assert {name: tensor.requires_grad for name, tensor in model.named_parameters()} == grads
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.usefixtures("few_queries")
@pytest.mark.parametrize("classes", [2, 3, 5, 8])
@pytest.mark.parametrize("mixed", [False, True], ids=["network", "mixture"])
def test_any_number_of_classes(digits: Data, classes: int, mixed: bool) -> None:
    """All attacks: nothing is raised of the library's losses, and AutoAttack leaves no image that
    another attack breaks."""
    rows = (digits.test.labels < classes).nonzero()[:6, 0]
    one = seeded(lambda: trained(mlp(classes), digits, classes, steps=30))
    model = one
    if mixed:
        gate = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
        model = Mixture([one, copy.deepcopy(one)], gate)
    images, labels = digits.test.images[rows], digits.test.labels[rows]
    eps = {2: 0.3, 3: 0.25}.get(classes, 0.15)
    found = evaluate(model, images, labels, attacks=FULL, eps=eps)
    assert not any("class" in flag for flag in found.flags)
    assert any("DLR" in note for note in found.notes) is (classes < 4)
    alone = evaluate(model, images, labels, attacks=["autoattack"], eps=eps)
    assert alone.worst_case <= found.robust["pgd50"]


def test_a_targeted_part_alone_breaks_what_has_two_classes(digits: Data) -> None:
    """Where its own loss does not exist."""
    from fmoe.data import Split as Part
    from fmoe.evaluation.chunk import Chunk
    from fmoe.evaluation.standard import autoattack

    rows = (digits.test.labels < 2).nonzero()[:6, 0]
    model = seeded(lambda: trained(mlp(2), digits, 2, steps=30))
    part = Part(digits.test.images[rows], digits.test.labels[rows])
    chunk, before = Chunk(part.pixels(), part.labels, (0, 0)), {"prediction.clean": part.labels}
    for targeted in ("apgd-t", "fab-t"):
        columns, raised = autoattack(targeted, model, chunk, before, Linf(eps=0.4))
        assert columns["broken.autoattack"].all()
        assert raised == []
