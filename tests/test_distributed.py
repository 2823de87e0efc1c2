"""Two gloo processes on this machine against one process with the same global batch.

All cases run in one pair of processes, started once; each writes what it found to a file.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from fmoe import assembly, config, data, training
from fmoe.attacks import FGSM, Clean
from fmoe.config import Config
from fmoe.data.augment import Augment
from fmoe.data.batches import Batches
from fmoe.numerics.sync_batch_norm import SyncBatchNorm2d, synchronize
from fmoe.numerics.worker import Group, Worker
from fmoe.storage.checkpoint import Checkpoints, copy_state
from fmoe.storage.folder import Folder
from fmoe.storage.tensors import Tensors
from fmoe.training import Trainer
from fmoe.training.metrics import TIMES
from fmoe.training.validation import validation_accuracies
from fmoe.training.warm_start import WarmStart
from tests.conftest import SMALL
from tests.ranks import Ranks, write

WORLD = 2

CLEAN = "joint.attack={kind: clean}"
PGD = "joint.attack={kind: pgd, eps: 0.1, step_size: 0.05, steps: 2}"
SYNC = "joint.batch_norm=sync"

SYNCHRONISED = {
    "sync": [SYNC, CLEAN],
    "sync, odd batch": [SYNC, CLEAN, "joint.batch_size=15"],
    "sync, pgd": [SYNC, PGD],
    "sync, pgd on batch statistics, odd batch": [
        SYNC,
        PGD,
        "joint.crafting=train",
        "joint.batch_size=15",
    ],
    "sync, trades": [
        SYNC,
        PGD,
        "joint.loss={kind: trades, beta: 1}",
        "joint.optimizer.lr=0.05",  # its gradients are large, and so is their rounding
    ],
}
"""BatchNorm over the global batch: equal to one process."""

FROZEN = {
    "experts frozen, gate without BatchNorm": [PGD, "joint.update=gate", "gate={kind: linear}"],
    "heads, odd batch": [
        PGD,
        "joint.update=heads",
        "gate={kind: linear}",
        "joint.batch_size=15",
    ],
    "heads in three parts, odd batch": [
        PGD,
        "joint.update=heads",
        "gate={kind: linear}",
        "joint.batch_size=15",
        "joint.accumulate=3",
    ],
    "own losses, heads in two parts, odd batch": [
        PGD,
        "joint.own=0.5",
        "joint.update=heads",
        "gate={kind: linear}",
        "joint.batch_size=15",
        "joint.accumulate=2",
    ],
    "uniform gate, heads": [CLEAN, "joint.update=heads", "gate={kind: uniform}"],
}
"""No BatchNorm in training mode: equal to one process without `sync`."""

LOCAL = {
    "local": [PGD],
    "local, odd batch": [PGD, "joint.batch_size=15"],
    "local, weights perturbed": [PGD, "joint.awp=0.01"],
    "local, balance": [PGD, "joint.balance=0.5"],
    "local, bfloat16": [PGD, "precision=bfloat16"],
    "local, checkpointing": [PGD, "joint.checkpointing=true"],
    "local, muon": [PGD, "joint.optimizer={kind: muon}"],
}
"""Each worker's own batch statistics: not equal to one process, but equal among the workers."""

STEPS = SYNCHRONISED | FROZEN | LOCAL


def settings(*overrides: str) -> Config:
    quick = [
        "joint.batch_size=16",
        "joint.epochs=1",
        "joint.optimizer.schedule={kind: constant}",
        "experts.roles.fgsm.count=0",
    ]
    return config.load("digits-whole", [*SMALL, *quick, *overrides])


def one_step(chosen: Config, worker: Worker) -> Tensors:
    model, joint = assembly.seeded_mixture(chosen), chosen.joint
    train = data.load("digits").train[:32]
    batches = Batches(
        train, joint.batch_size, chosen.data.augment, 0, worker.rank, worker.world_size
    )
    trainer = Trainer(model, joint, joint.attack, batches, worker, chosen.numerics, joint.update)
    x, y = next(batches.epoch(0))
    trainer.step(0, x, y)
    return copy_state(model)


def one_epoch(chosen: Config, worker: Worker, folder: Path) -> Tensors:
    """All buffers and parameters after an epoch, and its metrics."""
    model, digits = assembly.seeded_mixture(chosen), data.load("digits")
    (epoch,) = training.epochs(
        model,
        training.Training(
            chosen.joint, chosen.joint.attack, digits.train[:32], digits.val, chosen.data.augment, 0
        ),
        checkpoints=Checkpoints(Folder.at(folder), "key"),
        worker=worker,
    )
    differing = {"seconds", "train_seconds", "images_per_second", "workers", *TIMES}
    metrics = {
        f"metric.{name}": torch.tensor(value, dtype=torch.float64)
        for name, value in epoch.metrics.items()
        if name not in differing
    }
    buffers = {f"buffer.{name}": b.clone() for name, b in model.named_buffers()}
    return copy_state(model) | buffers | metrics


def layer(norm: nn.BatchNorm2d, rows: slice) -> Tensors:
    """Output, gradients and statistics of one BatchNorm on some of 7 images."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 3, 4, 4, generator=generator) * 2 + 1
    weight = torch.randn(7, 3, 4, 4, generator=generator)
    x = x[rows].requires_grad_(True)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1, 2]))
        norm.bias.copy_(torch.tensor([0.1, 0, -1]))
    out = norm(x)
    (out * weight[rows]).sum().backward()
    found = {"out": out, "x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    tensors = {name: tensor for name, tensor in found.items() if tensor is not None}
    return {name: t.detach().clone() for name, t in (tensors | dict(norm.named_buffers())).items()}


def validation(worker: Worker) -> Tensors:
    """Accuracies of an odd number of images under an attack with a random start."""
    model = assembly.seeded_mixture(settings())
    split = data.load("digits").val[:33]
    attacks = {"clean": Clean(), "fgsm": FGSM(eps=0.1, random_start=True)}
    found = validation_accuracies(model, split, attacks, 0, worker)
    return {"accuracy": torch.tensor(list(found.values()), dtype=torch.float64)}


def warm_start(worker: Worker) -> Tensors:
    """What is kept after two steps on an odd batch whose perturbations are known."""
    split = data.load("digits").train[:45]
    batches = Batches(split, 15, Augment(crop=1, flip=True), 0, worker.rank, worker.world_size)
    warm = WarmStart(len(split), (1, 8, 8), worker)
    for batch in islice(batches.of_epoch(0), 2):
        warm.keep(batch, batch.x * 2 - 1)
    return warm.state()


def worker(rank: int, folder: Path) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=120),
    )
    worker = Worker(rank, WORLD)
    found = {name: one_step(settings(*overrides), worker) for name, overrides in STEPS.items()}
    found["epoch"] = one_epoch(settings(PGD), worker, folder / "epoch")
    found["sync epoch"] = one_epoch(settings(SYNC, CLEAN), worker, folder / "sync-epoch")
    norm = SyncBatchNorm2d(3)
    norm.workers = worker.images
    found["layer"] = layer(norm, slice(0, 4) if rank == 0 else slice(4, 7))
    found["validation"] = validation(worker)
    found["warm start"] = warm_start(worker)
    write(found, folder / f"{rank}.safetensors")
    dist.destroy_process_group()


@dataclass(frozen=True)
class Pair(Ranks):
    """What the two processes found, and the folder in which they trained."""

    folder: Path


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("ranks")
    start_processes(worker, args=(folder,), nprocs=WORLD)  # type: ignore[no-untyped-call]
    return Pair([load_file(folder / f"{rank}.safetensors") for rank in range(WORLD)], folder)


def different(one: Tensors, other: Tensors) -> list[str]:
    """Names of tensors that are not the same bits."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def assert_close(one: Tensors, other: Tensors) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(
            tensor, other[name], rtol=1e-5, atol=1e-5, msg=partial("{}: {}".format, name)
        )


def parameters(chosen: Config, state: Tensors) -> Tensors:
    names = {name for name, _ in assembly.mixture(chosen).named_parameters()}
    return {name: tensor for name, tensor in state.items() if name in names}


@pytest.mark.parametrize("case", SYNCHRONISED | FROZEN)
def test_a_step_equals_that_of_one_process(ranks: Ranks, case: str) -> None:
    alone = one_step(settings(*STEPS[case]), Worker())
    for state in ranks.of(case):
        assert_close(state, alone)


@pytest.mark.parametrize("case", SYNCHRONISED | FROZEN)
def test_the_step_was_one(ranks: Ranks, case: str) -> None:
    """Guards the comparison above: something moved by 200 times its tolerance."""
    chosen = settings(*STEPS[case])
    initial = copy_state(assembly.seeded_mixture(chosen))
    moved = [(ranks.of(case)[0][n].float() - t.float()).abs().max() for n, t in initial.items()]
    assert max(moved) > 2e-3


@pytest.mark.parametrize("case", STEPS)
def test_parameters_are_the_same_on_all_ranks(ranks: Ranks, case: str) -> None:
    chosen = settings(*STEPS[case])
    first, second = (parameters(chosen, state) for state in ranks.of(case))
    assert len(first) > 100
    assert different(first, second) == []


@pytest.mark.parametrize("case", SYNCHRONISED)
def test_synchronised_statistics_are_the_same_on_all_ranks(ranks: Ranks, case: str) -> None:
    assert different(*ranks.of(case)) == []


def test_local_statistics_differ_until_the_epoch_ends(ranks: Ranks) -> None:
    assert any("running" in name for name in different(*ranks.of("local")))


@pytest.mark.parametrize("case", ["epoch", "sync epoch"])
def test_after_an_epoch_ranks_agree(ranks: Ranks, case: str) -> None:
    """Parameters, every buffer and every metric."""
    first, second = ranks.of(case)
    assert sum(name.startswith("buffer.") for name in first) > 100
    assert different(first, second) == []


def test_a_synchronised_epoch_equals_that_of_one_process(ranks: Ranks, tmp_path: Path) -> None:
    """Two steps: rounding has grown, so the tolerance is wider than for one."""
    alone, found = one_epoch(settings(SYNC, CLEAN), Worker(), tmp_path), ranks.of("sync epoch")[0]
    assert alone.keys() == found.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-3)


def test_the_checkpoint_is_what_ranks_agree_on(ranks: Pair) -> None:
    latest = Checkpoints(Folder.at(ranks.folder / "epoch"), "key").latest()
    assert latest is not None
    found = ranks.of("epoch")[1]
    assert different(latest.model, {name: found[name] for name in latest.model}) == []


def test_validation_is_the_same_for_any_number_of_workers(ranks: Ranks) -> None:
    alone = validation(Worker())["accuracy"]
    for found in ranks.of("validation"):
        assert torch.equal(found["accuracy"], alone)


def test_synchronised_layer_equals_batch_norm_of_all_images(ranks: Ranks) -> None:
    whole, parts = layer(nn.BatchNorm2d(3), slice(None)), ranks.of("layer")
    for name in ("out", "x"):
        whole_of_parts = torch.cat([part[name] for part in parts])
        torch.testing.assert_close(whole_of_parts, whole[name], rtol=1e-5, atol=1e-5)
    for name in ("weight", "bias"):  # each worker's share of the sum that DDP makes
        torch.testing.assert_close(sum(p[name] for p in parts), whole[name], rtol=1e-4, atol=1e-5)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        for part in parts:
            torch.testing.assert_close(part[name], whole[name], rtol=1e-5, atol=1e-6)


def pair_of_layers() -> tuple[nn.BatchNorm2d, SyncBatchNorm2d]:
    plain, synchronised = nn.BatchNorm2d(3), SyncBatchNorm2d(3)
    for norm in (plain, synchronised):
        norm.get_buffer("running_mean").copy_(torch.tensor([0.0, 1, 2]))
        norm.get_buffer("running_var").copy_(torch.tensor([1.0, 2, 3]))
    return plain, synchronised


@pytest.mark.parametrize("training_mode", [True, False])
def test_on_one_process_it_is_plain_batch_norm(training_mode: bool) -> None:
    plain, synchronised = (norm.train(training_mode) for norm in pair_of_layers())
    assert different(layer(plain, slice(None)), layer(synchronised, slice(None))) == []


def test_synchronize_changes_the_class_and_nothing_else() -> None:
    chosen = settings()
    model = assembly.seeded_mixture(chosen)
    state, kinds = copy_state(model), [type(module) for module in model.modules()]
    synchronize(model, Group())
    assert different(state, copy_state(model)) == []
    expected: list[Any] = [SyncBatchNorm2d if kind is nn.BatchNorm2d else kind for kind in kinds]
    assert [type(module) for module in model.modules()] == expected
    x: Tensor = data.load("digits").train[:4].pixels()
    plain = assembly.seeded_mixture(chosen)
    assert torch.equal(model.eval()(x), plain.eval()(x))


def test_all_ranks_keep_every_adversary(ranks: Ranks) -> None:
    alone = warm_start(Worker())
    assert int(alone["known"].sum()) == 30
    for kept in ranks.of("warm start"):
        assert different(kept, alone) == []
