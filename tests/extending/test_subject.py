"""To judge what is no mixture: a subject, which builds the module wherever it is asked to."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from fmoe.attacks.threat import Linf
from fmoe.data import Data, Split
from fmoe.errors import UserError
from fmoe.evaluation import Evaluation, Settings, StageResult, evaluate, plan
from fmoe.evaluation.chunk import so_far
from fmoe.evaluation.stages import ATTACKS
from fmoe.on_ray.evaluate import received, sent, stage
from fmoe.on_ray.session import Resources
from pipelines.judging.opened import Opened
from pipelines.judging.run import Request, chosen


class Linear(nn.Module):
    """Logits of digits. scale is no part of its state: `build` gives it."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.scale * x.flatten(1))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Foreign:
    """As it is built, with weights that nobody has trained."""

    scale: float = 2.0

    def build(self) -> nn.Module:
        return Linear(self.scale)


def trained(train: Split) -> nn.Module:
    """What is judged: a few steps of gradient descent on all training images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Foreign().build()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(train.pixels()), train.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


SETTINGS = Settings(("fgsm", "pgd", "mixture"), Linf(eps=0.1), batch_size=40)
NO_MIXTURE = {a.name: "not a mixture of experts" for a in ATTACKS if a.of_mixtures}


def in_one_process(model: nn.Module, test: Split) -> Evaluation:
    return evaluate(
        model,
        test.images,
        test.labels,
        attacks=SETTINGS.attacks,
        eps=SETTINGS.threat.eps,
        batch_size=SETTINGS.batch_size,
    )


def test_a_foreign_model_is_judged_without_what_needs_a_mixture(digits: Data) -> None:
    found = in_one_process(trained(digits.train), digits.test[:80])
    assert found.skipped == NO_MIXTURE
    assert found.clean > 0.8
    assert found.worst_case < found.clean - 0.3


def test_a_worker_makes_it_again(digits: Data) -> None:
    """By a small pickle and the tensors: what a worker's stages say is what one process says."""
    model, test = trained(digits.train), digits.test[:40]
    pickled = pickle.dumps(Foreign())
    assert len(pickled) < 200
    subject, state = pickle.loads(pickled), sent(model)
    found: dict[str, StageResult] = {}
    for name in plan(model, SETTINGS)[0]:
        before = {key: column.numpy() for key, column in so_far(found).items()}
        arrays = test.images.numpy(), test.labels.numpy()
        found[name] = stage(state, subject, *arrays, 0, name, before, SETTINGS, Resources(1, 0))
    wanted = in_one_process(model, test).columns
    columns = so_far(found)
    assert columns.keys() == wanted.keys()
    assert all(torch.equal(columns[key], wanted[key]) for key in wanted)


def test_tensors_that_numpy_does_not_know_arrive_as_they_were() -> None:
    one, other = (Foreign().build().to(torch.bfloat16) for _ in range(2))
    arrived = received(other, sent(one)).state_dict()
    for name, tensor in one.state_dict().items():
        assert arrived[name].dtype == torch.bfloat16
        assert torch.equal(arrived[name], tensor)


def opened(model: nn.Module, subject: Foreign) -> Opened:
    """As a MODEL of another spelling would be."""
    return Opened(
        name="python:tests.extending.test_subject:Linear",
        source="python:tests.extending.test_subject:Linear",
        network=model,
        subject=subject,
        key=("linear",),
        sha256="0" * 64,
    )


def test_a_command_asks_nothing_that_only_a_mixture_has(digits: Data) -> None:
    it = opened(trained(digits.train), Foreign())
    assert chosen(Request(eps="0.1"), it).attacks == ("fgsm", "pgd", "mixture", "sweeps")
    assert it.fits("digits", digits.facts) == []
    it.answers(digits.test[:4])
    small = opened(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), Foreign())
    with pytest.raises(UserError, match="the model has 3 classes"):
        small.answers(digits.test)
