"""Passes confined to a window against whole ones; Square Attack against the library's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fmoe.fast.folding import folded
from fmoe.fast.square import WindowedSquare, in_windows
from fmoe.fast.windowed import Box, Windowed
from tests.networks import MODELS

EPS = 8 / 255


BOXES = [
    Box(0, 32, 0, 32),
    *(
        Box(top, top + side, left, left + side)
        for side in (1, 2, 5)
        for top in (0, 1, 14, 30 - side, 32 - side)
        for left in (0, 7, 32 - side)
    ),
]


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 3, 32, 32)


@pytest.mark.parametrize("name", MODELS)
def test_windows_accepted_or_not_give_a_whole_pass_logits(name: str, x: Tensor) -> None:
    torch.manual_seed(1)
    model = folded(MODELS[name]())
    asked, here = Windowed(model), x.clone()
    with torch.no_grad():
        torch.testing.assert_close(asked.whole(x), model(x))
        for box in BOXES:
            new, accepted = torch.rand_like(box.of(here)), torch.rand(len(here)) < 0.5
            candidate = here.clone()
            box.of(candidate).copy_(new)
            torch.testing.assert_close(
                asked.changed(box, new), model(candidate), rtol=1e-4, atol=1e-5
            )
            asked.settle(accepted.nonzero()[:, 0])
            here[accepted] = candidate[accepted]
            assert torch.equal(asked.images.settled, here)
        rows = torch.tensor([0, 2, 5])
        asked.select(rows)
        box, new = BOXES[-1], torch.rand(3, 3, 5, 5)
        candidate = here[rows].clone()
        box.of(candidate).copy_(new)
        torch.testing.assert_close(asked.changed(box, new), model(candidate), rtol=1e-4, atol=1e-5)


def test_the_images_are_left_as_they_were(x: Tensor) -> None:
    before, asked = x.clone(), Windowed(folded(MODELS["network"]()))
    with torch.no_grad():
        asked.whole(x)
        asked.changed(BOXES[0], torch.zeros(6, 3, 32, 32))
    assert torch.equal(x, before)


def library(model: nn.Module, queries: int) -> Any:
    from pyautoattack.square import SquareAttack

    return SquareAttack(model, eps=EPS, n_queries=queries, seed=3, device="cpu")


@pytest.mark.parametrize("name", ["network", "mixture"])
def test_square_finds_what_the_library_finds(name: str) -> None:
    torch.manual_seed(2)
    model = folded(MODELS[name]())
    x = torch.rand(64, 3, 32, 32)
    with torch.no_grad():
        y = model(x).argmax(1)
    theirs = library(model, 60).perturb(x, y)
    attack = in_windows(library(model, 60), model, x)
    assert isinstance(attack, WindowedSquare)
    ours = attack.perturb(x, y)
    broken = model(theirs).argmax(1) != y
    assert 3 < broken.sum() < 60, "images must drop out, and some must stay"
    assert torch.equal(model(ours).argmax(1) != y, broken)
    torch.testing.assert_close(ours, theirs)


def test_what_is_not_known_from_inside_is_left_to_the_library(x: Tensor) -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    plain = library(other, 5)
    assert in_windows(plain, other, x) is plain
    unfolded = MODELS["network"]()
    assert in_windows(plain, unfolded, x) is plain
