"""Models that look robust and are not: each is flagged, and the figure is not theirs to choose.

All are made of one small classifier of digits that honestly keeps about a third under attack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmoe.attacks.threat import Linf
from fmoe.data import Data, Split
from fmoe.evaluation import Evaluation, evaluate, judge, plan, summarise
from fmoe.evaluation.chunk import so_far
from fmoe.evaluation.settings import Settings
from fmoe.models.mixture import Mixture

EPS = 0.1
IMAGES = 100


def trained(model: nn.Module, digits: Data, classes: int = 10, steps: int = 100) -> nn.Module:
    """In eval mode."""
    rows = digits.train.labels < classes
    x, y = digits.train.pixels()[rows], digits.train.labels[rows]
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(x), y))
        optimizer.step()
    return model.eval()


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def mlp(classes: int = 10) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, classes))


@pytest.fixture(scope="module")
def net(digits: Data) -> nn.Module:
    return seeded(lambda: trained(mlp(), digits))


@pytest.fixture(scope="module")
def part(digits: Data) -> Split:
    return digits.test[:IMAGES]


@pytest.fixture(scope="module")
def honest(net: nn.Module, part: Split) -> Evaluation:
    return judged(net, part)


def judged(model: nn.Module, part: Split, *attacks: str, eps: float = EPS) -> Evaluation:
    return evaluate(model, part.images, part.labels, attacks=attacks or ("fgsm", "pgd"), eps=eps)


def codes(found: Evaluation) -> set[str]:
    return {flag.split(":")[0] for flag in found.flags}


def test_the_honest_one_leaves_about_a_third(honest: Evaluation) -> None:
    assert honest.flags == []
    assert honest.clean > 0.9
    assert 0.2 < honest.worst_case < 0.45


def off_the_data(x: Tensor) -> Tensor:
    """bool [B]: not made of whole steps of 1/255, as attacked images are not."""
    return ((x * 255 - (x * 255).round()).abs() > 1e-3).flatten(1).any(1)


class Hostile(nn.Module):
    """Of a net: what is done to its input and its logits."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def before(self, x: Tensor) -> Tensor:
        return x

    def after(self, z: Tensor, x: Tensor) -> Tensor:
        return z

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.after(self.net(self.before(x)), x)
        return outputs


class NonFinite(Hostile):
    """value: at the label's place, at all places, or at the last one, where `on` says so."""

    def __init__(self, net: nn.Module, value: float, place: str, on: Callable[[Tensor], Tensor]):
        super().__init__(net)
        self.value, self.place, self.on = value, place, on

    def after(self, z: Tensor, x: Tensor) -> Tensor:
        places = {
            "largest": z.detach() == z.detach().amax(1, keepdim=True),
            "all": torch.ones_like(z, dtype=torch.bool),
            "last": (torch.arange(z.shape[1]) == z.shape[1] - 1).expand_as(z),
        }
        return torch.where(self.on(x)[:, None] & places[self.place], self.value, z)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        ctx.change = change
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None]:
        return ctx.change(given[0], ctx.saved_tensors[0]), None


class Gradient(Hostile):
    """change: (the honest gradient, the images) to the one given."""

    def __init__(self, net: nn.Module, change: Callable[[Tensor, Tensor], Tensor]):
        super().__init__(net)
        self.change = change

    def before(self, x: Tensor) -> Tensor:
        changed: Tensor = _Backward.apply(x, self.change)
        return changed


def becoming(value: float, on: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda g, x: torch.where(on(x)[:, None, None, None], torch.full_like(g, value), g)


def everywhere(x: Tensor) -> Tensor:
    return torch.ones(len(x), dtype=torch.bool)


def on_the_data(x: Tensor) -> Tensor:
    return ~off_the_data(x)


class Memory(Hostile):
    """Answers what is near to an image that it has seen with the class that it gave that.

    gentle: by as much as is needed, so that the gradient goes on; else by the very logits.
    """

    def __init__(self, net: nn.Module, *, gentle: bool, radius: float = 0.3):
        super().__init__(net)
        self.gentle, self.radius = gentle, radius
        self.seen: list[tuple[Tensor, Tensor]] = []

    def after(self, z: Tensor, x: Tensor) -> Tensor:
        answers = []
        for image, logits in zip(x.detach(), z, strict=True):
            old = next((a for i, a in self.seen if (i - image).abs().max() < self.radius), None)
            if old is None:
                self.seen.append((image.clone(), logits.detach().clone()))
                answers.append(logits)
            elif self.gentle:
                own = F.one_hot(old.argmax(), len(old))
                lack = (logits.detach().amax() + 0.1 - logits.detach()[old.argmax()]).clamp_min(0)
                answers.append(logits + own * lack)
            else:
                answers.append(old + 0 * logits)
        return torch.stack(answers)


class Enclosed(Hostile):
    """Keeps its memory in a function."""

    def __init__(self, net: nn.Module):
        super().__init__(net)
        memory = Memory(net, gentle=True)
        self.asked: Callable[[Tensor], Tensor] = lambda x: memory(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.asked(x)


class Wearing(Hostile):
    """After some calls it says the same whatever it sees."""

    def __init__(self, net: nn.Module, calls: int):
        super().__init__(net)
        self.calls, self.left = calls, nn.Parameter(torch.tensor(float(calls)), requires_grad=False)

    def after(self, z: Tensor, x: Tensor) -> Tensor:
        self.left.sub_(1)
        return z if self.left >= 0 else z.roll(1, 1)


class Batch(Hostile):
    def __init__(self, net: nn.Module, change: Callable[[Tensor], Tensor]):
        super().__init__(net)
        self.change = change

    def after(self, z: Tensor, x: Tensor) -> Tensor:
        return self.change(z)


class Statistics(Hostile):
    """BatchNorm that stays in training, whatever the evaluation says."""

    def __init__(self, net: nn.Module):
        super().__init__(net)
        self.norm = nn.BatchNorm2d(1)

    def before(self, x: Tensor) -> Tensor:
        self.norm.train()
        normed: Tensor = self.norm(x)
        return normed * 0.376 + 0.305


class Mode(Hostile):
    def after(self, z: Tensor, x: Tensor) -> Tensor:
        return z.roll(1, 1) if torch.is_grad_enabled() and x.requires_grad else z


class NoiseOffTheData(Hostile):
    def before(self, x: Tensor) -> Tensor:
        noise = 0.2 * torch.randn_like(x) * off_the_data(x)[:, None, None, None]
        return x + noise


class Simple(Hostile):
    def __init__(
        self,
        net: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda z: z,
    ):
        super().__init__(net)
        self.first, self.second = before, after

    def before(self, x: Tensor) -> Tensor:
        return self.first(x)

    def after(self, z: Tensor, x: Tensor) -> Tensor:
        return self.second(z)


@dataclass(frozen=True)
class Case:
    """code: the flag that it must raise; boast: how much more than the honest worst case it may
    keep, None where the flag alone is asked for."""

    build: Callable[[nn.Module], nn.Module]
    code: str
    boast: float | None = None


HOSTILE = {
    "NaN at the label off the data": Case(
        lambda net: NonFinite(net, torch.nan, "largest", off_the_data), "non-finite-output", 0
    ),
    "NaN off the data": Case(
        lambda net: NonFinite(net, torch.nan, "all", off_the_data), "non-finite-output", 0
    ),
    "inf at the label off the data": Case(
        lambda net: NonFinite(net, torch.inf, "largest", off_the_data), "non-finite-output", 0
    ),
    "-inf in one column off the data": Case(
        lambda net: NonFinite(net, -torch.inf, "last", off_the_data), "non-finite-output", 0
    ),
    "NaN everywhere": Case(
        lambda net: NonFinite(net, torch.nan, "largest", everywhere), "non-finite-output", 0
    ),
    "inf on clean images": Case(
        lambda net: NonFinite(net, torch.inf, "largest", on_the_data), "non-finite-output", 0
    ),
    "NaN gradient": Case(
        lambda net: Gradient(net, becoming(torch.nan, everywhere)), "masked-gradient"
    ),
    "NaN gradient off the data": Case(
        lambda net: Gradient(net, becoming(torch.nan, off_the_data)), "masked-gradient"
    ),
    "infinite gradient off the data": Case(
        lambda net: Gradient(net, becoming(-torch.inf, off_the_data)), "masked-gradient"
    ),
    "no gradient off the data": Case(
        lambda net: Gradient(net, becoming(0, off_the_data)), "masked-gradient"
    ),
    "gradient that points back": Case(
        lambda net: Gradient(net, lambda g, _: -g), "misleading-gradient"
    ),
    "gradient that points back off the data": Case(
        lambda net: Gradient(
            net, lambda g, x: torch.where(off_the_data(x)[:, None, None, None], -g, g)
        ),
        "misleading-gradient",
    ),
    "gradient of chance": Case(
        lambda net: Gradient(net, lambda g, _: torch.randn_like(g)), "misleading-gradient"
    ),
    "memory of the logits": Case(lambda net: Memory(net, gentle=False), "stateful", 0.02),
    "memory of the class": Case(lambda net: Memory(net, gentle=True), "stateful", 0.02),
    "memory of the very ball": Case(
        lambda net: Memory(net, gentle=True, radius=1.01 * EPS), "stateful", 0.02
    ),
    "memory in a closure": Case(Enclosed, "stateful", 0.02),
    "wears out at once": Case(lambda net: Wearing(net, 3), "stateful", 0.02),
    "wears out under attack": Case(lambda net: Wearing(net, 15), "stateful"),
    "minus the batch's mean": Case(
        lambda net: Batch(net, lambda z: z - z.mean(0)), "batch-dependent"
    ),
    "a vote of the batch": Case(
        lambda net: Batch(net, lambda z: z + 0.2 * z.mean(0)), "batch-dependent"
    ),
    "the first is another": Case(
        lambda net: Batch(net, lambda z: torch.cat([z[:1].roll(1, 1), z[1:]])), "batch-dependent"
    ),
    "statistics of the batch": Case(Statistics, "batch-dependent"),
    "knows of the gradient": Case(Mode, "gradient-mode"),
    "random off the data": Case(NoiseOffTheData, "random"),
    "small logits": Case(lambda net: Simple(net, after=lambda z: 1e-3 * z), "weak-loss"),
    "tiny logits": Case(lambda net: Simple(net, after=lambda z: 1e-30 * z), "weak-loss"),
    "huge logits": Case(lambda net: Simple(net, after=lambda z: 1e30 * z), "masked-gradient"),
    "eight grey levels": Case(
        lambda net: Simple(net, before=lambda x: (x * 8).round() / 8), "masked-gradient"
    ),
    "the data's own grey levels": Case(
        lambda net: Simple(net, before=lambda x: (x * 255).round() / 255), "masked-gradient"
    ),
    "no gradient": Case(lambda net: Simple(net, before=torch.Tensor.detach), "masked-gradient"),
    "probabilities": Case(
        lambda net: Simple(net, after=lambda z: z.softmax(1)), "probabilities", 0.02
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_models_are_found_out(
    net: nn.Module, part: Split, honest: Evaluation, name: str
) -> None:
    case = HOSTILE[name]
    found = judged(case.build(net), part)
    assert case.code in codes(found)
    if case.boast is not None:
        assert found.worst_case <= honest.worst_case + case.boast


@pytest.mark.parametrize("attacks", [("fgsm",), ("pgd",), ("sweeps",), ()])
@pytest.mark.parametrize(
    "name",
    [
        "NaN at the label off the data",
        "NaN gradient off the data",
        "gradient that points back off the data",
        "memory of the class",
        "memory of the logits",
        "a vote of the batch",
        "knows of the gradient",
        "random off the data",
        "probabilities",
    ],
)
def test_whatever_attacks_were_chosen(
    net: nn.Module, part: Split, name: str, attacks: tuple[str, ...]
) -> None:
    case, few = HOSTILE[name], part[:30]
    found = evaluate(case.build(net), few.images, few.labels, attacks=attacks, eps=EPS)
    assert case.code in codes(found)


@pytest.fixture(scope="module")
def dearly(net: nn.Module, part: Split, few_queries: None) -> Evaluation:
    """The honest one under expensive attacks, on three images."""
    return judged(net, part[:3], "pgd50", "autoattack")


@pytest.mark.usefixtures("few_queries")
@pytest.mark.parametrize(
    "name",
    [
        "NaN at the label off the data",
        "NaN gradient",
        "memory of the class",
        "no gradient",
    ],
)
def test_under_expensive_attacks(
    net: nn.Module, part: Split, dearly: Evaluation, name: str
) -> None:
    case = HOSTILE[name]
    found = judged(case.build(net), part[:3], "pgd50", "autoattack")
    assert case.code in codes(found)
    if case.boast is not None:
        assert found.worst_case <= dearly.worst_case


@pytest.mark.parametrize(
    "value", [NonFinite, Gradient], ids=["non-finite-output", "masked-gradient"]
)
def test_one_expert_of_a_mixture(net: nn.Module, part: Split, value: type[Hostile]) -> None:
    """In every stage of the suite that is made for mixtures."""
    bad = (
        NonFinite(net, torch.nan, "largest", off_the_data)
        if value is NonFinite
        else Gradient(net, becoming(torch.nan, off_the_data))
    )
    gate = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
    found = judged(Mixture([net, bad], gate), part[:20], "pgd", "mixture", "sweeps")
    assert ("non-finite-output" if value is NonFinite else "masked-gradient") in codes(found)
    if value is NonFinite:
        assert found.worst_case == 0
        assert found.columns["temperature.pgd"].sum() == 0
        assert found.columns["transfer"][:, :, -1].sum() == 0


def test_a_model_that_cannot_be_copied_is_said_to_be_one(net: nn.Module, part: Split) -> None:
    class Single(Hostile):
        def __deepcopy__(self, memo: dict[int, Any]) -> Single:
            raise TypeError("there is but one")

    found = judged(Single(net), part)
    assert codes(found) == {"not-copied"}


def test_stages_apart_raise_what_one_process_raises(net: nn.Module, part: Split) -> None:
    """As over Ray, where each has a model of its own."""
    settings, few = Settings(("fgsm", "pgd"), Linf(eps=EPS), 10), part[:30]
    for name in ("memory of the class", "NaN gradient off the data", "a vote of the batch"):
        build = HOSTILE[name].build
        names, skipped = plan(net, settings)
        parts = []
        for start in range(0, len(few), 10):
            found: dict[str, Any] = {}
            for stage in names:
                chunk, before = few[start : start + 10], so_far(found)
                found[stage] = judge(build(net), chunk, start, stage, before, settings)
            parts.append(found)
        apart = summarise(parts, few.labels, settings, skipped, 0.0)
        together = evaluate(
            build(net), few.images, few.labels, attacks=("fgsm", "pgd"), eps=EPS, batch_size=10
        )
        assert apart.flags == together.flags
        assert apart.figures == together.figures


# honest ones


class Casting(nn.Module):
    """Computes in another precision."""

    def __init__(self, net: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.net, self.dtype = net.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.net(x.to(self.dtype))
        return outputs


def convolutional(norm: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        norm(),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def scripted(net: nn.Module) -> nn.Module:
    module: nn.Module = torch.jit.trace(net, torch.rand(2, 1, 8, 8))  # type: ignore[no-untyped-call]
    return module


HONEST: dict[str, Callable[[Data], nn.Module]] = {
    "linear": lambda d: trained(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), d, steps=300),
    "batch norm and dropout": lambda d: trained(
        convolutional(lambda: nn.BatchNorm2d(4)), d, steps=40
    ),
    "group norm": lambda d: trained(convolutional(lambda: nn.GroupNorm(2, 4)), d, steps=40),
    "layer norm": lambda d: trained(convolutional(lambda: nn.LayerNorm([4, 8, 8])), d, steps=40),
    "channels last": lambda d: trained(convolutional(lambda: nn.BatchNorm2d(4)), d, steps=40).to(
        memory_format=torch.channels_last
    ),
    "log-probabilities": lambda d: nn.Sequential(trained(mlp(), d), nn.LogSoftmax(1)),
    "float64 inside": lambda d: Casting(trained(mlp(), d), torch.float64),
    "bfloat16 inside": lambda d: Casting(trained(mlp(), d), torch.bfloat16),
    "float16 inside": lambda d: Casting(trained(mlp(), d), torch.float16),
    "in place": lambda d: Simple(trained(mlp(), d), before=lambda x: x.mul_(2).div_(2)),
    "scripted": lambda d: scripted(trained(mlp(), d)),
    "mixture": lambda d: Mixture(
        [trained(mlp(), d), trained(mlp(), d)], nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    ),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_models_raise_none(digits: Data, name: str) -> None:
    """In chunks of which the last has one image."""
    model = seeded(lambda: HONEST[name](digits))
    few = digits.test[:101]
    found = evaluate(
        model, few.images, few.labels, attacks=["fgsm", "pgd", "mixture"], eps=EPS, batch_size=20
    )
    assert found.flags == []
    assert found.clean > 0.8
