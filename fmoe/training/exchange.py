"""What the workers of a phase exchange: gradients, statistics, and what a checkpoint keeps.

However experts are shared out, a checkpoint is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.distributed as dist
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fmoe.models.mixture import Mixture
from fmoe.numerics.worker import Group, Worker
from fmoe.storage.checkpoint import Checkpoint
from fmoe.storage.tensors import Tensors, pack


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
    """On the first worker with all experts; on the others as it is."""
    peers = worker.peers
    if peers.size == 1 or worker.rank > 0:
        return checkpoint
    if peers.rank > 0:
        own = {
            f"{family}.{name}": tensor
            for family, tensors in checkpoint.families.items()
            for name, tensor in tensors.items()
            if of_experts(model, name)
        }
        send(own, peers, worker.device)
        return checkpoint
    families = {family: dict(tensors) for family, tensors in checkpoint.families.items()}
    for tensors in received(peers, worker.device):
        for full_name, tensor in tensors.items():
            family, _, name = full_name.partition(".")
            families[family][name] = tensor
    return replace(checkpoint, families=families)


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


def send(tensors: Tensors, peers: Group, device: torch.device) -> None:
    """To the first of the peers."""
    data = torch.frombuffer(bytearray(pack(tensors)), dtype=torch.uint8).to(device)
    dist.send(torch.tensor([len(data)], device=device), group=peers.handle, group_dst=0)
    dist.send(data, group=peers.handle, group_dst=0)


def received(peers: Group, device: torch.device) -> Iterator[Tensors]:
    """What each of the others sends."""
    for rank in range(1, peers.size):
        size = torch.zeros(1, dtype=torch.int64, device=device)
        dist.recv(size, group=peers.handle, group_src=rank)
        data = torch.empty(int(size), dtype=torch.uint8, device=device)
        dist.recv(data, group=peers.handle, group_src=rank)
        yield load(data.cpu().numpy().tobytes())
