"""Which epoch is the best by validation, and whether another one is to come."""

from __future__ import annotations

from collections.abc import Mapping

from fmoe.attacks import Attack
from fmoe.config import Phase

COLLAPSED_BELOW = 0.5
TRAINED = "trained"


def selection(metrics: Mapping[str, float], attack: Attack) -> float:
    """What the best epoch is chosen by: validation accuracy under the validation attack, or clean
    accuracy where training itself is clean."""
    return metrics["val_robust" if attack.adversarial else "val_clean"]


def best_epoch(history: list[dict[str, float]], attack: Attack) -> int:
    scores = [selection(metrics, attack) for metrics in history]
    return scores.index(max(scores))


def overfitted(history: list[dict[str, float]], metrics: Mapping[str, float]) -> bool:
    """Catastrophic overfitting of the trained weights: PGD accuracy falls below half of the best so
    far while FGSM accuracy does not fall (arXiv 2001.03994, section 5.4)."""
    if not history:
        return False
    best = max(history, key=lambda epoch: of_trained(epoch, "val_robust"))
    lost = of_trained(metrics, "val_robust") < of_trained(best, "val_robust") * COLLAPSED_BELOW
    return lost and of_trained(metrics, "val_fgsm") >= of_trained(best, "val_fgsm")


def of_trained(metrics: Mapping[str, float], name: str) -> float:
    """Of the weights that are trained, where an epoch would deploy others."""
    return metrics.get(f"{TRAINED}_{name}", metrics[name])


def over(phase: Phase, history: list[dict[str, float]], attack: Attack) -> bool:
    """Whether the phase ends after these epochs: all are done, or patience is at its end."""
    done = len(history)
    if done >= phase.epochs:
        return True
    return bool(phase.patience and done and done - best_epoch(history, attack) > phase.patience)
