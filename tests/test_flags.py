"""A set of broken defences, each of which must raise its flag; a plain PGD-trained one, none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fmoe.attacks import PGD
from fmoe.attacks.threat import Linf
from fmoe.data import Data, Split
from fmoe.errors import UserError
from fmoe.evaluation import Evaluation, Settings, evaluate
from fmoe.models.experts import ResNet18
from fmoe.models.mixture import Mixture
from fmoe.numerics.draw import Draw
from tests.networks import learnt
from tests.test_mixture import Fixed

EPS = 0.1
IMAGES = 100


@pytest.fixture(scope="module")
def net(digits: Data) -> nn.Module:
    """PGD-trained for 150 steps: about 92% clean, 70% under PGD."""
    attack = PGD(eps=EPS, step_size=0.04, steps=4)

    def perturb(model: nn.Module, x: Tensor, y: Tensor, step: int) -> Tensor:
        return attack(model, x, y, draw=Draw(0, step))

    return learnt(digits, width=8, steps=150, perturb=perturb)


@pytest.fixture(scope="module")
def part(digits: Data) -> Split:
    return digits.test[:IMAGES]


def judged(
    model: nn.Module, part: Split, *attacks: str, selected_on: str | None = None
) -> Evaluation:
    wanted = attacks or ("fgsm", "pgd", "sweeps")
    return evaluate(
        model, part.images, part.labels, attacks=wanted, eps=EPS, selected_on=selected_on
    )


def codes(found: Evaluation) -> set[str]:
    return {flag.split(":")[0] for flag in found.flags}


class Around(nn.Module):
    """A net with something before its input or after its logits."""

    def __init__(
        self,
        net: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda z: z,
    ):
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.after(self.net(self.before(x)))
        return logits


def test_a_plain_robust_network_raises_none(net: nn.Module, part: Split) -> None:
    found = judged(net, part, "fgsm", "pgd", "pgd50", "sweeps", selected_on="validation")
    assert found.flags == []
    assert 0.5 < found.worst_case < found.clean


@pytest.mark.usefixtures("few_queries")
def test_it_raises_none_under_autoattack(net: nn.Module, part: Split) -> None:
    assert judged(net, part[:6], "fgsm", "pgd", "autoattack").flags == []


def test_saturated_softmax(net: nn.Module, part: Split) -> None:
    found = judged(Around(net, after=lambda z: 1e4 * z), part)
    assert "masked-gradient" in codes(found)


def test_quantised_input(net: nn.Module, part: Split) -> None:
    found = judged(Around(net, before=lambda x: (x * 8).round() / 8), part)
    assert "masked-gradient" in codes(found)
    assert found.robust["pgd"] > 0.8  # what it would have boasted


def test_no_gradient_at_all(net: nn.Module, part: Split) -> None:
    found = judged(Around(net, before=torch.Tensor.detach), part)
    assert "masked-gradient" in codes(found)


def test_random_at_inference(net: nn.Module, part: Split) -> None:
    found = judged(Around(net, before=lambda x: x + 0.05 * torch.randn_like(x)), part)
    assert "random" in codes(found)


def test_gate_that_collapses(net: nn.Module, part: Split) -> None:
    model = Mixture([net, net, net], Fixed(0, 9, 0))
    found = judged(model, part, "fgsm", "pgd")
    assert "gate-collapse" in codes(found)
    assert "expert 1" in next(flag for flag in found.flags if "collapse" in flag)
    alive = Mixture([net, net, net], Fixed(0, 1, 0))
    assert judged(alive, part, "fgsm", "pgd").flags == []


def test_a_collapse_may_be_just_a_note(net: nn.Module, part: Split) -> None:
    found = judged(Mixture([net, net], Fixed(0, 9)), part, "pgd")
    settings = Settings(("pgd",), Linf(eps=EPS), collapse_stops=False)
    allowed = Evaluation(settings, found.labels, found.columns)
    assert allowed.flags == []
    assert "gate-collapse" in allowed.notes[0]


def test_selected_on_test(net: nn.Module, part: Split) -> None:
    assert codes(judged(net, part, "pgd", selected_on="test")) == {"selected-on-test"}


def test_normalises_outside(net: ResNet18, part: Split) -> None:
    """It expects what `net.normalize` would have made: pixels in [0,1] are not that."""
    mean, std = net.normalize.mean, net.normalize.std
    undone = Around(net, before=lambda x: x * std + mean)
    assert "outside-normalisation" in codes(judged(undone, part, "pgd"))
    bytes_ = Around(net, before=lambda x: x / 255)
    assert "outside-normalisation" in codes(judged(bytes_, part, "pgd"))


def test_images_that_are_normalised_already_are_refused(net: nn.Module, part: Split) -> None:
    with pytest.raises(UserError, match="normalisation belongs inside"):
        evaluate(net, part.pixels(), part.labels)


def columns(**found: Tensor) -> dict[str, Tensor]:
    n = len(next(iter(found.values())))
    right = torch.zeros(n, dtype=torch.int64)
    return {
        "prediction.clean": right,
        "steady": torch.ones(n, dtype=torch.bool),
        "gradient": torch.ones(n),
        "scaled.standardised": right,
        "scaled.bytes": right,
        **found,
    }


def flagged(**found: Tensor) -> set[str]:
    """Of 100 images that are right, with labels of ten classes in equal parts."""
    given = columns(**{name.replace("__", "."): column for name, column in found.items()})
    labels = torch.arange(100) % 10
    given["prediction.clean"] = labels
    for name in ("standardised", "bytes"):
        given[f"scaled.{name}"] = labels
    return codes(Evaluation(Settings((), Linf(eps=EPS)), labels, given))


def first(count: int) -> Tensor:
    return torch.arange(100) < count


def test_iterated_attacks_weaker_than_one_step() -> None:
    assert flagged(broken__fgsm=first(30), broken__pgd=first(20)) == {"weak-iterated"}
    assert flagged(broken__fgsm=first(20), broken__pgd=first(30)) == set()


def test_transfer_stronger_than_white_box() -> None:
    matrix = torch.ones(100, 3, 3, dtype=torch.bool)
    matrix[:30, 1, 2] = False  # examples of expert 1 on the mixture
    matrix[:20, 2, 2] = False  # its own
    experts = torch.ones(100, 2, dtype=torch.bool)
    assert flagged(transfer=matrix, experts=experts) == {"weak-white-box"}
    matrix[:30, 2, 2] = False
    assert flagged(transfer=matrix, experts=experts) == set()


def test_square_breaks_what_gradients_did_not() -> None:
    by = torch.full((100,), -1)
    by[:5] = 3
    assert flagged(by__autoattack=by) == {"weak-white-box"}
    by[:5] = 2
    assert flagged(by__autoattack=by) == set()


def test_more_steps_still_break_more() -> None:
    step = torch.full((100,), -1)
    step[:30], step[30:33] = 10, 80
    assert flagged(step=step) == {"unfinished-attack"}
    step[30:33] = 40
    assert flagged(step=step) == set()


def test_never_falls_to_chance() -> None:
    radius = torch.where(first(70), 0.1, torch.inf)
    assert flagged(radius=radius) == {"never-breaks"}
    radius = torch.where(first(90), 0.1, torch.inf)  # chance is 10%
    assert flagged(radius=radius) == set()


def test_wide_gap_to_autoattack() -> None:
    assert flagged(broken__pgd=first(30), broken__autoattack=first(40)) == {"wide-gap"}
    assert flagged(broken__pgd=first(30), broken__autoattack=first(38)) == set()
    assert flagged(broken__pgd=first(30), broken__surrogate=first(40)) == {"wide-gap"}


def test_a_loss_that_is_exactly_zero_has_no_gradient_to_trust(net: nn.Module, part: Split) -> None:
    """Logits times 20: far from where the gradient itself underflows."""
    found = judged(Around(net, after=lambda z: 20 * z), part, "fgsm")
    assert codes(found) == {"masked-gradient"}
