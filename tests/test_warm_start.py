"""Perturbations that are kept from epoch to epoch."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fmoe import assembly, config, training
from fmoe.attacks import PGD
from fmoe.data import Data
from fmoe.data.augment import Augment
from fmoe.data.batches import Batches
from fmoe.numerics.draw import Draw
from fmoe.numerics.worker import Worker
from fmoe.storage.checkpoint import Checkpoints, copy_state
from fmoe.storage.folder import Folder
from fmoe.training import Epoch
from fmoe.training.warm_start import INT8_SCALE, WarmStart
from tests.conftest import MEMBER, SMALL

AUGMENT = Augment(crop=1, flip=True)


def batches(digits: Data) -> Batches:
    return Batches(digits.train[:48], 16, AUGMENT, seed=0)


def test_placement_is_undone_but_for_the_border(digits: Data) -> None:
    """What was cropped away is lost; everything else comes back to its place."""
    made = batches(digits)
    for batch in made.of_epoch(0):
        image = made.images.held().pixels()[batch.rows] + 1  # nothing is 0
        back = batch.transform.undo(batch.transform.apply(image))
        inside = back != 0
        assert torch.equal(back[inside], image[inside])
        assert inside[:, :, 1:-1, 1:-1].all()
        assert not inside.all()


def test_augmented_images_are_as_before(digits: Data) -> None:
    """`epoch` and `of_epoch` give the same batches; a crop without offset is the image itself."""
    made = batches(digits)
    for (x, y), batch in zip(made.epoch(1), made.of_epoch(1), strict=True):
        assert torch.equal(x, batch.x)
        assert torch.equal(y, made.images.held().labels[batch.rows])
        top, left, flipped = batch.transform.top, batch.transform.left, batch.transform.flipped
        assert top is not None
        assert left is not None
        assert flipped is not None
        same = (top == 1) & (left == 1) & ~flipped
        assert torch.equal(x[same], made.images.held().pixels()[batch.rows][same])


def test_an_attack_starts_where_the_last_one_ended(digits: Data) -> None:
    made = batches(digits)
    warm = WarmStart(48, (1, 8, 8), Worker())
    first = next(made.of_epoch(0))
    moved = torch.rand_like(first.x) * 2 - 1
    warm.keep(first, moved)
    again = warm.draw(Draw(0, total=16, rows=slice(0, 16)), first, slice(0, 16))
    start, fresh = again.noise(first.x), again.noise(first.x)
    border = first.transform.apply(first.transform.undo(torch.ones_like(moved))) == 0
    assert (start - moved)[~border].abs().max() <= 0.5 / INT8_SCALE + 1e-6
    assert (start[border] == 0).all()
    plain = Draw(0, total=16, rows=slice(0, 16))
    plain.noise(first.x)
    assert torch.equal(fresh, plain.noise(first.x))  # a restart is random


def test_an_image_without_a_past_starts_at_random(digits: Data) -> None:
    batch = next(batches(digits).of_epoch(0))
    warm = WarmStart(48, (1, 8, 8), Worker())
    draw = Draw(0, total=16, rows=slice(0, 16))
    assert torch.equal(
        warm.draw(draw, batch, slice(0, 16)).noise(batch.x),
        Draw(0, total=16, rows=slice(0, 16)).noise(batch.x),
    )


SETTINGS = [
    *SMALL,
    "data.augment={crop: 1, flip: true}",
    "joint.attack={kind: pgd, eps: 0.1, steps: 1}",
    "joint.validation.attack={kind: fgsm, eps: 0.1}",
    "joint.batch_size=16",
    "joint.epochs=3",
    "joint.accumulate=2",
]


def train(
    digits: Data, warm: bool, folder: Path, epochs: int
) -> tuple[dict[str, Tensor], list[Epoch]]:
    chosen = config.load("digits-whole", [*SETTINGS, f"joint.warm_start={str(warm).lower()}"])
    model = assembly.seeded_expert(chosen, MEMBER, 0)
    stream = training.epochs(
        model,
        training.Training(
            chosen.joint, chosen.joint.attack, digits.train[:48], digits.val, chosen.data.augment
        ),
        checkpoints=Checkpoints(Folder.at(folder), "warm"),
    )
    found = list(islice(stream, epochs))
    return copy_state(model), found


def test_a_resume_goes_on_from_the_same_adversaries(digits: Data, tmp_path: Path) -> None:
    whole, _ = train(digits, True, tmp_path / "whole", 3)
    train(digits, True, tmp_path / "parts", 1)
    parts, epochs = train(digits, True, tmp_path / "parts", 3)
    assert [epoch.index for epoch in epochs] == [0, 1, 2]
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    cold, _ = train(digits, False, tmp_path / "cold", 3)
    assert not all(torch.equal(whole[name], cold[name]) for name in whole)


def test_one_step_an_epoch_reaches_what_many_steps_reach(digits: Data) -> None:
    """On a linear model whose gradient is known: PGD-1 thrice from its own end is PGD-3."""
    weight = torch.randn(10, 64, generator=torch.Generator().manual_seed(0))

    def model(images: Tensor) -> Tensor:
        return images.flatten(1) @ weight.T

    made = Batches(digits.train[:16], 16, Augment(), seed=0)
    warm = WarmStart(16, (1, 8, 8), Worker())
    one = PGD(eps=0.1, step_size=0.02, steps=1)
    for index in range(4):
        batch = next(made.of_epoch(index))
        draw = warm.draw(Draw(index, total=16, rows=slice(0, 16)), batch, slice(0, 16))
        x_adv = one.perturb(model, batch.x, batch.y, draw)
        warm.keep(batch, (x_adv - batch.x) / 0.1)
    losses = []
    for attack, draw in (
        (one, warm.draw(Draw(9, total=16, rows=slice(0, 16)), batch, slice(0, 16))),
        (one, Draw(9, total=16, rows=slice(0, 16))),
    ):
        x_adv = attack.perturb(model, batch.x, batch.y, draw)
        losses.append(torch.nn.functional.cross_entropy(model(x_adv), batch.y).item())
    warm_loss, cold_loss = losses
    assert warm_loss > cold_loss * 1.05


@pytest.mark.parametrize("crop", [0, 1])
def test_rows_are_those_of_the_images(digits: Data, crop: int) -> None:
    made = Batches(digits.train[:48], 16, Augment(crop=crop), seed=3)
    seen = torch.cat([batch.rows for batch in made.of_epoch(0)])
    assert sorted(seen.tolist()) == list(range(48))
