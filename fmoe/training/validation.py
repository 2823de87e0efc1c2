"""What every epoch is judged by: accuracies on validation images, cheap attacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fmoe.attacks import Attack, Clean
from fmoe.config import Phase
from fmoe.data import Split
from fmoe.errors import UserError
from fmoe.fast.folding import folded
from fmoe.numerics.draw import Draw, shard
from fmoe.numerics.precision import exact
from fmoe.numerics.worker import Worker, reduce_sum
from fmoe.training.selection import TRAINED, selection

VALIDATION_BATCH = 250


@exact()
def validation_accuracies(
    model: nn.Module, split: Split, attacks: Mapping[str, Attack], seed: int, worker: Worker
) -> dict[str, float]:
    """Accuracy under each attack in float32 and eval mode; the same whatever the workers."""
    model = folded(model.eval())
    counts = torch.zeros(len(attacks), dtype=torch.float64, device=worker.device)
    for start in range(0, len(split), VALIDATION_BATCH):
        total = min(VALIDATION_BATCH, len(split) - start)
        rows = shard(total, worker.rank, worker.world_size)
        part = split[start : start + total][rows]
        if len(part) == 0:
            continue
        x, y = part.pixels(), part.labels
        for index, attack in enumerate(attacks.values()):
            draw = Draw(seed, "validation", start, total=total, rows=rows)
            x_adv = attack(model, x, y, draw=draw)
            with torch.no_grad():
                counts[index] += (model(x_adv).argmax(1) == y).sum()
    shares = (reduce_sum(counts, worker) / len(split)).tolist()
    return dict(zip(attacks, shares, strict=True))


def validation_attacks(phase: Phase, trained_against: Attack) -> dict[str, Attack]:
    """What every epoch is judged by; FGSM's part is to show catastrophic overfitting.

    Raises `UserError` for a guard by an attack that does not say what would show it.
    """
    chosen = phase.validation.attack
    judged: dict[str, Attack] = {"val_clean": Clean(), "val_robust": chosen}
    if phase.guard and trained_against.adversarial:
        try:
            one_step = chosen.one_step
        except NotImplementedError:
            raise UserError(
                f"guard: the validation attack {type(chosen).__name__} does not say which one-step "
                "attack shows catastrophic overfitting; set guard: false"
            ) from None
        if one_step is not None:
            judged["val_fgsm"] = one_step
    return judged


def choose(
    model: nn.Module,
    offers: Mapping[str, Mapping[str, Tensor]],
    judge: Callable[[], dict[str, float]],
    attack: Attack,
) -> tuple[dict[str, float], Mapping[str, Tensor] | None]:
    """Metrics of the state that is best by `selection`, and that state; None: as it is trained.

    offers: other states of the model, by name. Each one's metrics are given under its name too,
    as `NAME_val_robust`, and those of the trained state as `trained_val_robust`.
    """
    trained = judge()
    best, chosen = trained, None
    told = {f"{TRAINED}_{metric}": value for metric, value in trained.items() if offers}
    for name, offered in offers.items():
        with holding(model, offered):
            metrics = judge()
        told |= {f"{name}_{metric}": value for metric, value in metrics.items()}
        if selection(metrics, attack) > selection(best, attack):
            best, chosen = metrics, offered
    return {**best, **told}, chosen


@contextmanager
def holding(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """The model in another state for the time being."""
    own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    try:
        yield
    finally:
        model.load_state_dict(own)
