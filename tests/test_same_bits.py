"""The attacks' bits are those of the code that was measured: digests of what it made.

The models are small and smooth: no sign of their gradients hangs on how a processor rounds.
"""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor, nn

from fmoe.attacks import FGSM, NFGSM, PGD, Attack, Objective
from fmoe.attacks.threat import Linf
from fmoe.evaluation import evaluate
from fmoe.evaluation.chunk import Chunk
from fmoe.evaluation.iterated import ascending, until_broken
from fmoe.models.mixture import Mixture
from fmoe.numerics.draw import Draw

EPS = 0.1
LIST = [0.02, 0.05, EPS]


class Smooth(nn.Module):
    """tanh between two matrices of weights that are uniform in [-1, 1]."""

    def __init__(self, seed: int, classes: int):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.rand(48, 12, generator=draw) * 2 - 1)
        self.second = nn.Parameter(torch.rand(12, classes, generator=draw) * 2 - 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = ((x.flatten(1) - 0.5) @ self.first / 2).tanh() @ self.second
        return logits


def mixture() -> Mixture:
    return Mixture([Smooth(1, 5), Smooth(2, 5), Smooth(3, 5)], Smooth(4, 3))


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(9))


def labels(x: Tensor) -> Tensor:
    """What the mixture says, but for every eighth image."""
    with torch.no_grad():
        y: Tensor = mixture()(x).argmax(1)
    y[::8] = (y[::8] + 1) % 5
    return y


def digest(*tensors: Tensor) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


ATTACKS: dict[str, Attack] = {
    "fgsm": FGSM(eps=EPS),
    "fgsm step_size": FGSM(eps=EPS, step_size=0.03, loss="margin"),
    "fgsm random start": FGSM(eps=LIST, step_size=0.125, random_start=True),
    "fgsm kl": FGSM(eps=EPS, loss="kl"),
    "nfgsm": NFGSM(eps=LIST),
    "pgd": PGD(eps=EPS, steps=5),
    "pgd lists": PGD(eps=LIST, step_size=[0.01, 0.02], steps=[2, 3]),
    "pgd no random start": PGD(eps=EPS, steps=5, random_start=False),
    "pgd restarts": PGD(eps=EPS, steps=3, restarts=3),
    "pgd margin": PGD(eps=EPS, steps=3, restarts=2, loss="margin"),
    "pgd kl": PGD(eps=EPS, steps=3, restarts=2, loss="kl"),
    "pgd kl no random start": PGD(eps=EPS, steps=3, random_start=False, loss="kl"),
}
MADE = {
    "fgsm": "6c251b4920aeebb8",
    "fgsm step_size": "030aa88a3d4f6ed3",
    "fgsm random start": "bfeab00676f7de37",
    "fgsm kl": "34eacf2aa28a39ca",
    "nfgsm": "22de9cc31539c7a9",
    "pgd": "86abcccfbc4bdb56",
    "pgd lists": "33f6f21879754cdf",
    "pgd no random start": "ffcf4e47b8247eba",
    "pgd restarts": "4745ea2e8c2b1a8d",
    "pgd margin": "07ae61475d8d9a07",
    "pgd kl": "88150f444721bc8c",
    "pgd kl no random start": "1f5426b94544a5c3",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_makes_the_images_that_it_made(name: str) -> None:
    x = images(32)
    made = ATTACKS[name](mixture(), x, labels(x), draw=Draw(7, total=40, rows=slice(4, 36)))
    assert digest(made) == MADE[name]


ITERATED: dict[tuple[Objective, int, bool, float | None], str] = {
    ("ce", 20, True, None): "4200b4337c82f319",
    ("margin", 20, True, None): "2a7fac1093d84229",
    ("ce", 1, False, 0.04): "3e29b0619591e15b",
    ("ce", 5, True, 0.02): "fff97767e7340ca2",
}
"""By loss, steps, random start and step size."""


def iterated(loss: Objective, steps: int, random_start: bool, step_size: float | None) -> str:
    model, x = mixture(), images(40)
    chunk = Chunk(x, labels(x), (3, 0))
    start = torch.arange(40) % 5 != 0
    found = until_broken(
        ascending(model, chunk.y, loss),
        chunk,
        start,
        "golden",
        threat=Linf(eps=0.04),
        steps=steps,
        step_size=step_size,
        random_start=random_start,
    )
    return digest(found.step, found.prediction, found.x)


@pytest.mark.parametrize(("how", "made"), ITERATED.items())
def test_iterates_end_where_they_ended(
    how: tuple[Objective, int, bool, float | None], made: str
) -> None:
    assert iterated(*how) == made


def judged(attacks: tuple[str, ...], count: int) -> str:
    """Of all columns that are not of rounded numbers."""
    x = (images(count) * 255).round().to(torch.uint8)
    found = evaluate(
        mixture(), x, labels(x / 255), attacks=attacks, eps=0.03, batch_size=24, seed=5
    )
    exact = {
        name: column
        for name, column in found.columns.items()
        if not column.is_floating_point() or name == "radius"
    }
    assert found.flags == []
    return digest(*(exact[name] for name in sorted(exact)))


JUDGED = {
    (("fgsm", "pgd", "pgd50"), 64): "ca78ce790b2d196c",
    (("mixture",), 24): "732be6c7346f34d4",
    (("sweeps",), 24): "6b7fba3dff76cc28",
    (("autoattack",), 6): "e068a055ca2d906b",
}


@pytest.mark.parametrize(("how", "made"), JUDGED.items())
def test_an_evaluation_finds_what_it_found(how: tuple[tuple[str, ...], int], made: str) -> None:
    assert judged(*how) == made
