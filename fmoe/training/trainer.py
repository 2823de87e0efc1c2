"""One adversarial training step, and all that a phase of training remembers.

No Ray and no MLflow: several workers are told apart by `Worker`, of an initialised
torch.distributed group, and by nothing else. What is drawn depends on (seed, global step) alone.

BatchNorm: with several workers its batch statistics are by default each worker's own (what DDP
does), and running statistics are averaged over the workers after every epoch. `batch_norm="sync"`
takes them over the global batch; then the number of workers changes nothing but rounding (but
for `balance`, which is taken over each worker's share).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fmoe.after_step import Follower
from fmoe.attacks import Attack, AttackConfig
from fmoe.config import Joint, Phase, Update
from fmoe.data.batches import Batch, Batches
from fmoe.errors import NonFiniteLoss, UserError
from fmoe.fast.folding import Twin
from fmoe.models.mixture import Mixture, keeping_buffers
from fmoe.numerics.draw import Draw, shard
from fmoe.numerics.precision import Numerics
from fmoe.numerics.state import REMEDY, Stateful
from fmoe.numerics.sync_batch_norm import synchronize
from fmoe.numerics.worker import Group, Worker, reduce_sum
from fmoe.storage.checkpoint import (
    DEPLOYED,
    MODEL,
    RANK,
    WARM,
    Begun,
    Checkpoint,
    copied,
    family,
)
from fmoe.training import exchange
from fmoe.training.checks import check_attack, check_batches, check_kept
from fmoe.training.crafting import crafting_view
from fmoe.training.keeping import Keeping
from fmoe.training.step_loss import StepLoss
from fmoe.training.warm_start import WarmStart

CHECK_LOSS_EVERY = 16  # steps; a check makes the host wait for the device
TINY = 1e-6  # an eps of 0 divides nothing

Progress = Callable[[int, int, int], None]
"""(epoch, step within it, steps of it), called after every step."""


def set_trainable(model: nn.Module, update: Update) -> None:
    """Freezes what `update` leaves out: all but the gate, or but gate and experts' heads."""
    model.requires_grad_(update == "all")
    if isinstance(model, Mixture) and update != "all":
        model.gate.requires_grad_(True)
        if update == "heads":
            for head in model.heads:
                head.requires_grad_(True)


def train_mode(model: nn.Module, update: Update) -> None:
    """Training mode, but frozen experts keep their BatchNorm statistics."""
    model.train()
    if isinstance(model, Mixture) and update != "all":
        for expert in model.experts:
            expert.eval()


@contextmanager
def on_batch_statistics(model: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """The model in training mode for the time of crafting; its buffers stay as they are."""
    with keeping_buffers(model):
        model.train()
        # a plain function: attacks put a module into eval mode
        yield lambda x: model(x)


@contextmanager
def weights_moved(model: nn.Module, share: float) -> Iterator[None]:
    """Kernels and matrices along their gradients by `share` of their norm, for the time of the
    block; then they are what they were, bit for bit."""
    parameters: list[Tensor] = list(model.parameters())
    moved = [p for p in parameters if p.grad is not None and p.dim() > 1]
    before = [p.detach().clone() for p in moved]
    with torch.no_grad():
        for parameter in moved:
            assert parameter.grad is not None
            length = share * parameter.norm() / parameter.grad.norm().clamp_min(TINY)
            parameter.add_(parameter.grad * length)
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(moved, before)


@dataclass
class Trainer:
    """The state of one phase: model, optimizers, what follows them, what warm starts keep."""

    model: nn.Module
    phase: Phase
    attack: AttackConfig
    batches: Batches
    worker: Worker
    numerics: Numerics
    update: Update

    def __post_init__(self) -> None:
        self.numerics = self.numerics.fitting(self.worker.device)
        self.numerics.prepare(self.worker.device)
        check_batches(self.phase, len(self.batches.images), self.worker.world_size)
        check_attack(self.phase, self.attack)
        check_kept(self.phase, self.batches.images)
        held = self.model.shared.peers if isinstance(self.model, Mixture) else Group()
        assert held == self.worker.peers, "see `Mixture.hold`"
        self.model.to(self.worker.device)
        set_trainable(self.model, self.update)
        if isinstance(self.model, Mixture) and isinstance(self.phase, Joint):
            self.model.checkpointing = self.phase.checkpointing
        if isinstance(self.phase, Joint) and self.phase.batch_norm == "sync":
            synchronize(self.model, self.worker.images)
        step_loss = StepLoss(self.model, self.phase, self.numerics, self.worker.world_size)
        self.step_loss = exchange.with_gradients_of_all(step_loss, self.worker)
        self.steps = self.phase.epochs * len(self.batches)
        self.twin: Twin | None = None
        if self.phase.crafting == "eval":
            self.twin = crafting_view(self.model, self.numerics)
        self._begin()

    def _begin(self) -> None:
        """All that remembers steps, as before the first one, on the weights as they are now."""
        self._begun: tuple[Begun, Tensor] | None = None
        learning = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.optimizers = self.phase.optimizer.build(learning)
        self.followers: dict[str, Follower] = {
            one.kind: one.build(self.model) for one in self.phase.following
        }
        images = self.batches.images
        self.warm: WarmStart | None = None
        if self.phase.warm_start:
            self.warm = WarmStart(len(images), images.shape, self.worker)

    @property
    def seconds(self) -> float:
        """That the epoch has taken which is gone on with."""
        return 0.0 if self._begun is None else self._begun[0].seconds

    @property
    def images(self) -> int:
        """Of an epoch, over all workers."""
        return len(self.batches) * self.batches.batch_size

    def craft(self, attack: Attack, x: Tensor, y: Tensor, draw: Draw) -> Tensor:
        """Adversarial images on the bare model as it is now, or on its folded twin."""
        if not attack.adversarial:
            return x
        if self.twin is None:
            with on_batch_statistics(self.model) as model:
                return attack.perturb(self._autocast(model), x, y, draw)
        return attack.perturb(self._autocast(self.twin.module), x, y, draw)

    def _autocast(self, model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(images: Tensor) -> Tensor:
            self.numerics.begin_pass(images.device)
            with self.numerics.autocast(images.device):
                return model(images)

        return run

    def step(
        self, index: int, x: Tensor, y: Tensor, batch: Batch | None = None
    ) -> tuple[Tensor, Attack]:
        """One update on one global batch: draw an attack, craft, descend."""
        with self._at_temperature_of(index):
            return self._step(index, x, y, batch)

    @contextmanager
    def _at_temperature_of(self, index: int) -> Iterator[None]:
        """The gate's temperature in a step, by which it is also attacked."""
        first = self.phase.first_temperature if isinstance(self.phase, Joint) else None
        both = (self.model, None if self.twin is None else self.twin.module)
        mixtures = [model for model in both if isinstance(model, Mixture)]
        if first is None or not mixtures:
            yield
            return
        last, done = mixtures[0].temperature, index / max(1, self.steps - 1)
        for mixture in mixtures:
            mixture.temperature = first ** (1 - done) * last**done
        try:
            yield
        finally:
            for mixture in mixtures:
                mixture.temperature = last

    def _step(self, index: int, x: Tensor, y: Tensor, batch: Batch | None) -> tuple[Tensor, Attack]:
        draw = self.batches.draw("attack", index)
        attack = self.attack.sample(draw)
        self.model.zero_grad()
        if self.twin and attack.adversarial:
            self.twin.refresh()
        crafted, parts = [], self.phase.accumulate
        for part in range(parts):
            rows = shard(len(y), part, parts)
            own = draw.part(rows.start, rows.stop)
            if self.warm and batch:
                own = self.warm.draw(own, batch, rows)
            with self.worker.clock.on("crafting"):
                crafted.append(self.craft(attack, x[rows], y[rows], own))
        x_adv = torch.cat(crafted)
        with self.worker.clock.on("descent"):
            sums = self._descend(index, x, x_adv, y)
        if self.warm and batch and attack.warm_eps is not None:
            self.warm.keep(batch, (x_adv - x) / max(attack.warm_eps, TINY))
        return sums, attack

    def _descend(self, index: int, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        with keeping_buffers(self.model) if self.phase.awp else nullcontext():
            sums = self._gradients(x, x_adv, y)
        if self.phase.awp:
            with weights_moved(self.model, self.phase.awp):
                self.model.zero_grad()
                self._gradients(x, x_adv, y)
        self.optimizers.step(index, self.steps)
        for follower in self.followers.values():
            follower.after_step(index)
        return sums

    def _gradients(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Adds those at the weights as they are, part by part; workers exchange their sums with the
        last part's. Gives the sums to log."""
        train_mode(self.model, self.update)
        first, parts, total = self.batches.rows.start, self.phase.accumulate, []
        for part in range(parts):
            rows = shard(len(y), part, parts)
            alone = part < parts - 1 and isinstance(self.step_loss, DistributedDataParallel)
            with self.step_loss.no_sync() if alone else nullcontext():  # type: ignore[operator]
                loss, sums = self.step_loss(x[rows], x_adv[rows], y[rows], first + rows.start)
                loss.backward()
            total.append(sums)
        exchange.add_up(self.model, self.worker)
        return torch.stack(total).sum(0)

    def epoch(
        self, index: int, progress: Progress | None, keeping: Keeping | None = None
    ) -> dict[str, float]:
        """One pass over the training images; metrics are means over all workers' images.

        Goes on where a checkpoint that was made inside of the epoch left off. keeping: makes such.
        """
        (begun, total), self._begun = self._begun or (Begun(0, 0.0), None), None
        start, steps = time.perf_counter() - begun.seconds, len(self.batches)
        unchecked: list[tuple[int, Tensor, Attack]] = []
        batches, clock = self.batches.of_epoch(index, begun.steps), self.worker.clock
        clock.taken()
        for number in range(begun.steps, steps):
            with clock.on("data"):
                batch = next(batches)
            step = index * steps + number
            sums, attack = self.step(step, batch.x, batch.y, batch)
            total = sums if total is None else total + sums
            unchecked.append((step, sums[0], attack))
            last = number == steps - 1
            keep = keeping is not None and not last and keeping.due()
            if len(unchecked) == CHECK_LOSS_EVERY or last or keep:
                check_losses(unchecked, self.worker)
                unchecked = []
            if keep:
                assert keeping is not None
                keeping.keep(Begun(number + 1, time.perf_counter() - start), total)
            if progress:
                progress(index, number + 1, steps)
        assert total is not None
        exchange.average_statistics(self.model, self.worker)
        mean = reduce_sum(total, self.worker) / self.images
        weights = {f"gate_weight_{i}": w for i, w in enumerate(mean[2:].tolist())}
        return {
            "train_loss": mean[0].item(),
            "train_accuracy": mean[1].item(),
            **weights,
            "lr": self.phase.optimizer.lr_at((index + 1) * steps - 1, self.steps),
            "train_seconds": time.perf_counter() - start,
            **{f"{name}_seconds": seconds for name, seconds in clock.taken().items()},
        }

    def offers(self) -> dict[str, Mapping[str, Tensor]]:
        """Other states of the model than the trained one, by the kind that offers them."""
        offers = ((kind, follower.offer()) for kind, follower in self.followers.items())
        return {kind: state for kind, state in offers if state is not None}

    def families(self) -> dict[str, Stateful]:
        """What a checkpoint keeps besides the model's state."""
        optimizer = family("optimizer", self.phase.optimizer.kind)
        after = {family("after", kind): follower for kind, follower in self.followers.items()}
        return {optimizer: self.optimizers, **({WARM: self.warm} if self.warm else {}), **after}

    def checkpoint(
        self,
        epoch: int,
        history: list[dict[str, float]],
        deployed: Mapping[str, Tensor] | None = None,
        inside: tuple[Begun, Tensor] | None = None,
    ) -> Checkpoint:
        """Of the experts that this worker holds (`exchange.of_all` has all of them). deployed: the
        state that validation chose, where it is not the trained one. inside: how far the next epoch
        is, and what has been added up of it."""
        families = {MODEL: copied(self.model.state_dict())}
        if deployed is not None:
            families[DEPLOYED] = copied(deployed)
        families |= {name: copied(part.state()) for name, part in self.families().items()}
        if inside is None:
            return Checkpoint(epoch, families, list(history))
        begun, sums = inside
        own = {**exchange.statistics(self.model, self.worker), exchange.SUMS: sums}
        families[exchange.own_family(self.worker)] = copied(own)
        return Checkpoint(epoch, families, list(history), begun=begun)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Raises `UserError` unless it holds what this phase keeps, and nothing else.

        Of one that is adopted from other settings the model must fit; any other family that is not
        there or does not fit entirely begins anew (an optimizer of another kind is another family).
        """
        own = f"{RANK}:"  # of workers, inside of an epoch
        kept = {n for n in checkpoint.families if n not in (MODEL, DEPLOYED) and own not in n}
        differing = kept ^ self.families().keys()
        if differing and not checkpoint.adopted:
            raise UserError(
                f"the checkpoint of epoch {checkpoint.epoch} does not fit: it has "
                f"{', '.join(sorted(kept))}, but this phase {', '.join(self.families())}: {REMEDY}"
            )
        checkpoint = exchange.of_this(checkpoint, self.model)
        self.model.load_state_dict(checkpoint.model)
        self._begin()
        if checkpoint.begun is not None:
            found = exchange.of_ranks(checkpoint, self.worker)
            self._begun = checkpoint.begun, found.pop(exchange.SUMS).to(self.worker.device)
            self.model.load_state_dict(found, strict=False)
        for name, part in self.families().items():
            if name not in checkpoint.families:
                continue
            try:
                part.restore(checkpoint.families[name])
            except UserError:
                if not checkpoint.adopted:
                    raise


def check_losses(losses: list[tuple[int, Tensor, Attack]], worker: Worker) -> None:
    """Raises `NonFiniteLoss`, on all workers alike, for the first step whose loss is not finite."""
    totals = reduce_sum(torch.stack([loss for _, loss, _ in losses]), worker).tolist()
    for (step, _, attack), total in zip(losses, totals, strict=True):
        if not math.isfinite(total):
            raise NonFiniteLoss(
                f"the loss is {total} at step {step}, with the attack {attack!r}; "
                "a lower optimizer.lr is the usual remedy"
            )
