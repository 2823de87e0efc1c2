"""Experts shared out among workers, against one process: the same numbers, the same checkpoint.

The same gloo processes stand for one mesh after another and go through all cases in each; every
process writes what it found.
"""

from __future__ import annotations

import contextlib
import datetime
import math
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.multiprocessing.spawn import start_processes

from fmoe import assembly, config, data, training
from fmoe.attacks import PGD
from fmoe.attacks.ascent import input_gradient
from fmoe.config import Config
from fmoe.data.batches import Batches
from fmoe.models.mixture import Mixture
from fmoe.numerics.draw import Draw
from fmoe.numerics.shared_experts import SharedExperts
from fmoe.numerics.worker import Worker
from fmoe.storage.checkpoint import Checkpoint, Checkpoints, copied
from fmoe.storage.folder import Folder
from fmoe.storage.tensors import Tensors
from fmoe.training import Trainer, exchange
from tests.ranks import Ranks, write

Mesh = tuple[int, int]
MESHES = [(2, 1), (1, 2), (2, 2), (1, 3)]
"""(data, expert): groups that share the images, workers of a group."""
ROLES = (
    "experts.roles={benign: {count: 1, attack: {kind: clean}}, fgsm: {count: 4}, pgd: {count: 4}}"
)
WHOLE = ["experts.backbone.width=4", ROLES, "experts.start=fresh"]
BRANCHED = [*WHOLE, "experts.trunk={stages: 2}", "experts.branch={width: 6, blocks: 2}"]
GATES = {
    kind: f"{{kind: {kind}{', width: 4' if kind in ('conv', 'resnet', 'top1') else ''}}}"
    for kind in ("conv", "resnet", "linear", "uniform", "top1", "features")
}
CASES: dict[str, list[str]] = {
    f"{body}, {gate}, {mixing}": [*settings, f"gate={described}", f"mixing={mixing}"]
    for (body, settings), (gate, described), mixing in product(
        {"whole": WHOLE, "branched": BRANCHED}.items(),
        GATES.items(),
        ("probabilities", "logits"),
    )
    if not (body == "whole" and gate == "features")
} | {
    "own losses, checkpointing, two parts, average": [
        *WHOLE,
        "joint.own=0.5",
        "joint.balance=0.1",
        "joint.checkpointing=true",
        "joint.accumulate=2",
        "joint.ema=0.5",
        "joint.batch_norm=local",
    ],
    "branched, trades, weights perturbed, muon": [
        *BRANCHED,
        "joint.loss={kind: trades, beta: 1}",
        "joint.awp=0.01",
        "joint.optimizer={kind: muon, lr: 0.01}",
    ],
    "gate alone": [*WHOLE, "joint.update=gate"],
}
LOCAL = {"own losses, checkpointing, two parts, average"}
"""Statistics of BatchNorm are each part's own: with other groups of images other numbers."""


def left_out(mesh: Mesh) -> set[str]:
    """Beside `LOCAL`, but for two workers that share the experts: how outputs are mixed has nothing
    to do with who holds what, and nine whole networks take their time."""
    if mesh == (1, 2):
        return set()
    mixed = {name for name in CASES if name.startswith("whole") and "logits" in name}
    return mixed | (LOCAL if mesh[0] > 1 else set())


STEPS = 3
EPOCHS = 3
LOCALLY = "joint.batch_norm=local"
SENT = (None, torch.bfloat16)
ROBUST = "robust.safetensors"


def settings(*overrides: str) -> Config:
    quick = [
        "joint.batch_size=14",
        "joint.batch_norm=sync",
        "joint.attack={kind: pgd, eps: 0.1, step_size: 0.05, steps: 2}",
        "joint.optimizer.lr=0.05",
    ]
    return config.load("digits-whole", [*quick, *overrides])


def trained(chosen: Config, worker: Worker) -> Tensors:
    """Outputs, input gradients and a whole checkpoint after three steps, in float64."""
    model, joint = assembly.seeded_mixture(chosen).double(), chosen.joint
    model.hold(SharedExperts(worker.peers))
    batches = Batches(
        data.load("digits").train[: STEPS * joint.batch_size],
        joint.batch_size, chosen.data.augment, 0, worker.rank, worker.world_size,
    )  # fmt: skip
    trainer = Trainer(model, joint, joint.attack, batches, worker, chosen.numerics, joint.update)
    for index, (x, y) in enumerate(batches.epoch(0)):
        trainer.step(index, x.double(), y)
    exchange.average_statistics(model, worker)
    images = data.load("digits").val[:7]
    x, y = images.pixels().double(), images.labels
    found = {"outputs": model.eval()(x).detach(), "weights": model.gate_weights(x).detach()}
    found["gradient"] = input_gradient(model, x, y, "ce", None)
    if trainer.twin:
        trainer.twin.refresh()
        found["crafting.gradient"] = input_gradient(trainer.twin.module, x, y, "ce", None)
    kept = exchange.of_all(trainer.checkpoint(0, []), model, worker)
    if worker.first:
        found |= {f"{f}/{n}": t for f, part in kept.families.items() for n, t in part.items()}
    return copied(found)


def going_on(
    worker: Worker,
    folder: Path,
    until: int,
    *overrides: str,
    stop_at: tuple[int, int] | None = None,
) -> None:
    """Trains on from the checkpoint that is there, to that of so many epochs; stop_at: epoch and
    step after which it is left, with a checkpoint of every step."""
    base = f"joint.epochs={EPOCHS}", "joint.ema=0.5"
    chosen, digits = settings(*BRANCHED, *base, *overrides), data.load("digits")
    model = assembly.seeded_mixture(chosen).double()
    model.hold(SharedExperts(worker.peers))
    joint, kept = chosen.joint, Checkpoints(Folder.at(folder), "key")
    of = digits.train[: 2 * joint.batch_size], digits.val[:16]

    def progress(epoch: int, step: int, steps: int) -> None:
        if (epoch, step) == stop_at:
            raise InterruptedError

    epochs = training.epochs(
        model,
        training.Training(joint, joint.attack, *of),
        checkpoints=kept,
        worker=worker,
        progress=progress,
        notice=lambda: stop_at is not None,
    )
    with contextlib.suppress(InterruptedError):
        list(islice(epochs, until))


def kept_in(folder: Path) -> Checkpoint:
    latest = Checkpoints(Folder.at(folder), "key").latest()
    assert latest is not None
    return latest


def finished(folder: Path) -> Tensors:
    """What the last epoch's checkpoint keeps, of a training that goes on alone."""
    going_on(Worker(), folder, EPOCHS)
    families = kept_in(folder).families
    return {f"{f}/{n}": tensor for f, part in families.items() for n, tensor in part.items()}


def robust_model(folder: Path | None) -> Mixture:
    """A branched mixture that withstands something; from the folder, or trained for a moment."""
    chosen = settings(
        *BRANCHED, "experts.backbone.width=8", "joint.epochs=4", "joint.batch_size=64",
        "joint.optimizer.lr=0.2",
    )  # fmt: skip
    model, joint = assembly.seeded_mixture(chosen), chosen.joint
    if folder is None:
        digits = data.load("digits")
        of = training.Training(joint, joint.attack, digits.train, digits.val[:32])
        list(training.epochs(model, of))
    else:
        model.load_state_dict(load_file(folder / ROBUST))
    return model.eval()


def attacked(worker: Worker, folder: Path, sent: torch.dtype | None) -> Tensors:
    """The loss of each of 150 images under PGD whose gradients travel in the type `sent`."""
    model, split = robust_model(folder), data.load("digits").val[:150]
    model.hold(SharedExperts(worker.peers, sent))
    x, y = split.pixels(), split.labels
    x_adv = PGD(eps=0.1, steps=20)(model, x, y, draw=Draw(0))
    with torch.no_grad():
        log_p = model(x_adv)
    return {"loss": torch.nn.functional.nll_loss(log_p, y, reduction="none"), "x_adv": x_adv}


def file(folder: Path, mesh: Mesh, rank: int) -> Path:
    return folder / f"{mesh[0]}-{mesh[1]}-{rank}.safetensors"


def worker(rank: int, folder: Path) -> None:
    """What each of the processes does."""
    torch.set_num_threads(1)
    for mesh in MESHES:
        if rank >= math.prod(mesh):
            continue
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/{mesh[0]}-{mesh[1]}",
            rank=rank,
            world_size=math.prod(mesh),
            timeout=datetime.timedelta(seconds=120),
        )
        place = Worker.of_mesh(rank, math.prod(mesh), mesh[1], torch.device("cpu"))
        assert (place.world_size, place.peers.size) == mesh
        found = {
            name: trained(settings(*given), place)
            for name, given in CASES.items()
            if name not in left_out(mesh)
        }
        going_on(place, folder / f"begun-{mesh[0]}-{mesh[1]}", 1)
        going_on(place, folder / f"alone-for-{mesh[0]}-{mesh[1]}", EPOCHS)
        for name, stops in {"stopped": [(1, 1)], "left": [(1, 1)], "not-stopped": []}.items():
            here = folder / f"{name}-{mesh[0]}-{mesh[1]}"
            for stop_at in stops:
                going_on(place, here, EPOCHS, LOCALLY, stop_at=stop_at)
            if name != "left":
                going_on(place, here, EPOCHS, LOCALLY)
        if mesh == (1, 2):
            found |= {f"sent as {sent}": attacked(place, folder, sent) for sent in SENT}
        write(found, file(folder, mesh, rank))
        dist.destroy_process_group()


@dataclass(frozen=True)
class World(Ranks):
    """What the processes of a mesh found."""

    mesh: Mesh


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds")
    for mesh in MESHES:
        going_on(Worker(), folder / f"alone-for-{mesh[0]}-{mesh[1]}", 1)
    state = robust_model(None).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / ROBUST)
    most = max(map(math.prod, MESHES))
    start_processes(worker, args=(folder,), nprocs=most)  # type: ignore[no-untyped-call]
    return folder


@pytest.fixture(scope="module", params=MESHES, ids=str)
def world(request: pytest.FixtureRequest, worlds: Path) -> World:
    mesh = request.param
    return World([load_file(file(worlds, mesh, rank)) for rank in range(math.prod(mesh))], mesh)


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensors]:
    return {name: trained(settings(*overrides), Worker()) for name, overrides in CASES.items()}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_one_process(world: World, alone: dict[str, Tensors], case: str) -> None:
    """Outputs, input gradients, and all that the first worker's checkpoint keeps."""
    if case in left_out(world.mesh):
        pytest.skip("see `left_out`")
    first, *others = world.of(case)
    assert first.keys() == alone[case].keys()
    assert any(name.startswith("optimizer") for name in first)
    for found in (first, *others):
        for name, tensor in found.items():
            torch.testing.assert_close(
                tensor, alone[case][name], rtol=1e-5, atol=1e-6, msg=partial("{}: {}".format, name)
            )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    return finished(tmp_path_factory.mktemp("whole"))


def assert_close(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(
            tensor, expected[name], rtol=1e-4, atol=1e-5, msg=partial("{}: {}".format, name)
        )


def test_begun_with_experts_shared_out_and_finished_alone(
    world: World, worlds: Path, uninterrupted: Tensors
) -> None:
    folder = worlds / f"begun-{world.mesh[0]}-{world.mesh[1]}"
    assert sorted(path.name for path in folder.iterdir()) == ["epoch-0000"]
    assert_close(finished(folder), uninterrupted)


def test_begun_alone_and_finished_with_experts_shared_out(
    world: World, worlds: Path, uninterrupted: Tensors
) -> None:
    folder = worlds / f"alone-for-{world.mesh[0]}-{world.mesh[1]}"
    latest = kept_in(folder)
    assert (latest.epoch, latest.history[-1]["workers"]) == (EPOCHS - 1, math.prod(world.mesh))
    assert_close(finished(folder), uninterrupted)


def test_gradients_in_bfloat16_do_not_weaken_the_attack(worlds: Path) -> None:
    found = Ranks([load_file(file(worlds, (1, 2), rank)) for rank in range(2)])
    exact, rounded = (found.of(f"sent as {sent}") for sent in SENT)
    for pair in (exact, rounded):
        assert torch.equal(pair[0]["x_adv"], pair[1]["x_adv"]), "both have the same images"
    assert not torch.equal(exact[0]["x_adv"], rounded[0]["x_adv"])
    losses = [one[0]["loss"] for one in (exact, rounded)]
    assert 0.2 < losses[0].mean() < 2, "a model that withstands something"
    assert losses[1].mean() > 0.995 * losses[0].mean()


def test_stopped_inside_of_an_epoch_the_same_bits(world: World, worlds: Path) -> None:
    """BatchNorm's statistics are each worker's own until the epoch ends."""
    mesh = f"{world.mesh[0]}-{world.mesh[1]}"
    first, other = (kept_in(worlds / f"{name}-{mesh}") for name in ("stopped", "not-stopped"))
    assert first.families.keys() == other.families.keys()
    for family, tensors in first.families.items():
        assert tensors.keys() == other.families[family].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, other.families[family][name]), name


def test_inside_of_an_epoch_one_process_goes_on_for_several(world: World, worlds: Path) -> None:
    folder = worlds / f"left-{world.mesh[0]}-{world.mesh[1]}"
    kept = Checkpoints(Folder.at(folder), "key")
    inside = kept.latest_inside(0)
    assert inside is not None
    ranks = [name for name in inside.families if name.startswith("rank:")]
    assert ranks == [f"rank:{rank}" for rank in range(world.mesh[0])]
    going_on(Worker(), folder, EPOCHS, LOCALLY)
    assert kept_in(folder).history[1]["train_loss"] > 0
    assert kept_in(folder).epoch == EPOCHS - 1
