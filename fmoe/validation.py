"""What every epoch is judged by: accuracies on validation images, cheap attacks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fmoe.attacks import FGSM, PGD, Attack, Clean
from fmoe.config import Phase
from fmoe.data import Split
from fmoe.draw import Draw, shard
from fmoe.folding import folded
from fmoe.place import Place, reduce_sum
from fmoe.precision import exact

VALIDATION_BATCH = 250


@exact()
def validation_accuracies(
    model: nn.Module, split: Split, attacks: Mapping[str, Attack], seed: int, place: Place
) -> dict[str, float]:
    """Accuracy under each attack in float32 and eval mode; the same whatever the workers."""
    model = folded(model.eval())
    counts = torch.zeros(len(attacks), dtype=torch.float64, device=place.device)
    for start in range(0, len(split), VALIDATION_BATCH):
        total = min(VALIDATION_BATCH, len(split) - start)
        rows = shard(total, place.rank, place.world_size)
        part = split[start : start + total][rows]
        if len(part) == 0:
            continue
        x, y = part.pixels(), part.labels
        for index, attack in enumerate(attacks.values()):
            draw = Draw(seed, "validation", start, total=total, rows=rows)
            x_adv = attack(model, x, y, draw=draw)
            with torch.no_grad():
                counts[index] += (model(x_adv).argmax(1) == y).sum()
    shares = (reduce_sum(counts, place) / len(split)).tolist()
    return dict(zip(attacks, shares, strict=True))


def validation_attacks(phase: Phase, trained_against: Attack) -> dict[str, Attack]:
    """What every epoch is judged by; FGSM's part is to show catastrophic overfitting."""
    chosen = phase.validation.attack
    judged: dict[str, Attack] = {"val_clean": Clean(), "val_robust": chosen}
    if phase.guard and isinstance(chosen, PGD) and not isinstance(trained_against, Clean):
        judged["val_fgsm"] = FGSM(eps=chosen.eps, norm=chosen.norm)
    return judged
