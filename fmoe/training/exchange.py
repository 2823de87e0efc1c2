"""What the workers of a phase exchange: gradients, statistics, and what a checkpoint keeps.

However experts are shared out, a checkpoint is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
import torch.distributed as dist
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fmoe.models.mixture import Mixture
from fmoe.numerics.worker import Group, Worker
from fmoe.storage.checkpoint import RANK, Checkpoint, family
from fmoe.storage.tensors import Tensors, pack

SUMS = "sums"
"""The name under which a worker keeps what it has added up of an epoch, beside its statistics."""


def with_gradients_of_all(step_loss: nn.Module, worker: Worker) -> nn.Module:
    """Its gradients are the means over all workers that share images. Where experts are shared
    out, `add_up` does that after the backward pass."""
    if worker.world_size == 1 or worker.peers.size > 1:
        return step_loss
    return DistributedDataParallel(
        step_loss,
        device_ids=[worker.device] if worker.device.type == "cuda" else None,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )


@torch.no_grad()
def add_up(model: nn.Module, worker: Worker) -> None:
    """The gradients of shared-out experts, each of which is whole on the worker that holds it, and
    of the rest, of which every worker has a share: of all images, in the place of its own."""
    if worker.peers.size == 1:
        return
    own, rest = list[Tensor](), list[Tensor]()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            (own if of_experts(model, name) else rest).append(parameter.grad)
    for group, gradients in ((worker.images, own), (worker.all, rest)):
        if group.size > 1 and gradients:
            flat = group.sum_(torch.cat([g.flatten() for g in gradients]))
            put_back(gradients, flat / worker.world_size)


@torch.no_grad()
def average_statistics(model: nn.Module, worker: Worker) -> None:
    """BatchNorm's, of what has just been trained: frozen experts keep theirs bit for bit."""
    if worker.world_size == 1:
        return
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    running = [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]
    if running:
        flat = worker.images.sum_(torch.cat([b.flatten() for b in running]))
        put_back(running, flat / worker.world_size)


def put_back(tensors: list[Tensor], flat: Tensor) -> None:
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def of_experts(model: nn.Module, name: str) -> bool:
    """Whether a tensor is an expert's, by its name in the model or in what remembers steps."""
    return isinstance(model, Mixture) and name.startswith(f"{model.OWN}.")


def of_all(checkpoint: Checkpoint, model: nn.Module, worker: Worker) -> Checkpoint:
    """On the first worker with all experts, and with what each worker has of its own inside of an
    epoch; on the others as it is."""
    peers, everyone = worker.peers, worker.all
    if worker.rank > 0 and checkpoint.begun is None:
        return checkpoint  # its peers' experts are those of the first group
    if not worker.first:
        send(of_worker(checkpoint, model, worker), everyone, worker.device)
        return checkpoint
    families = {family: dict(tensors) for family, tensors in checkpoint.families.items()}
    senders = range(1, peers.size if checkpoint.begun is None else everyone.size)
    for tensors in received(senders, everyone, worker.device):
        for full_name, tensor in tensors.items():
            family, _, name = full_name.partition(".")
            families.setdefault(family, {})[name] = tensor
    return replace(checkpoint, families=families)


def of_worker(checkpoint: Checkpoint, model: nn.Module, worker: Worker) -> Tensors:
    """What the first worker has not, by family and name."""
    families = checkpoint.families
    if worker.rank > 0:
        families = {name: part for name, part in families.items() if name == own_family(worker)}
    return {
        f"{family}.{name}": tensor
        for family, tensors in families.items()
        for name, tensor in tensors.items()
        if of_experts(model, name) or worker.peers.rank == 0
    }


def own_family(worker: Worker) -> str:
    """Of what a worker that shares images has of its own inside of an epoch."""
    return family(RANK, str(worker.rank))


def statistics(model: nn.Module, worker: Worker) -> Tensors:
    """Those of BatchNorm, where they are the worker's own until the epoch's end."""
    if worker.world_size == 1:
        return {}
    return {name: b for name, b in model.named_buffers() if b.is_floating_point()}


def of_ranks(checkpoint: Checkpoint, worker: Worker) -> Tensors:
    """What this worker goes on with inside of an epoch: its own statistics and sums, or, of another
    number of workers, the statistics' means, and the sums on the first."""
    ranks = [part for name, part in checkpoint.families.items() if name.startswith(f"{RANK}:")]
    if len(ranks) == worker.world_size:
        return dict(checkpoint.families[own_family(worker)])
    found = {name: torch.stack([r[name] for r in ranks]).mean(0) for name in ranks[0]}
    found[SUMS] = found[SUMS] * (len(ranks) if worker.rank == 0 else 0)
    return found


def of_this(checkpoint: Checkpoint, model: nn.Module) -> Checkpoint:
    """Without the tensors of experts that this worker does not hold."""
    if not isinstance(model, Mixture) or model.shared.alone:
        return checkpoint
    held = {f"{model.OWN}.{place}" for place in model.shared.held(model.count)}
    depth = model.OWN.count(".") + 2  # the list's name and the expert's place

    def here(name: str) -> bool:
        return not of_experts(model, name) or ".".join(name.split(".")[:depth]) in held

    return replace(
        checkpoint,
        families={
            family: {name: tensor for name, tensor in tensors.items() if here(name)}
            for family, tensors in checkpoint.families.items()
        },
    )


def send(tensors: Tensors, workers: Group, device: torch.device) -> None:
    """To the first of the workers."""
    data = torch.frombuffer(bytearray(pack(tensors)), dtype=torch.uint8).to(device)
    dist.send(torch.tensor([len(data)], device=device), group=workers.handle, group_dst=0)
    dist.send(data, group=workers.handle, group_dst=0)


def received(senders: Iterable[int], workers: Group, device: torch.device) -> Iterator[Tensors]:
    """What each of them sends."""
    for rank in senders:
        size = torch.zeros(1, dtype=torch.int64, device=device)
        dist.recv(size, group=workers.handle, group_src=rank)
        data = torch.empty(int(size), dtype=torch.uint8, device=device)
        dist.recv(data, group=workers.handle, group_src=rank)
        yield load(data.cpu().numpy().tobytes())
