"""Which epoch is the best by validation, and whether another one is to come."""

from __future__ import annotations

from collections.abc import Mapping

from fmoe.attacks import Attack
from fmoe.config import Phase

LEFT = 0.5


def selection(metrics: Mapping[str, float], attack: Attack) -> float:
    """What the best epoch is chosen by: validation accuracy under the validation attack, or clean
    accuracy where training itself is clean."""
    return metrics["val_clean" if attack.kind == "clean" else "val_robust"]  # type: ignore[attr-defined]


def best_epoch(history: list[dict[str, float]], attack: Attack) -> int:
    scores = [selection(metrics, attack) for metrics in history]
    return scores.index(max(scores))


def overfitted(history: list[dict[str, float]], metrics: Mapping[str, float]) -> bool:
    """Catastrophic overfitting: PGD accuracy falls below half of the best so far while FGSM
    accuracy does not fall (arXiv 2001.03994, section 5.4)."""
    if not history:
        return False
    best = max(history, key=lambda epoch: epoch["val_robust"])
    lost = metrics["val_robust"] < best["val_robust"] * LEFT
    return lost and metrics["val_fgsm"] >= best["val_fgsm"]


def over(phase: Phase, history: list[dict[str, float]], attack: Attack) -> bool:
    """Whether the phase ends after these epochs: all are done, or patience is at its end."""
    done = len(history)
    if done >= phase.epochs:
        return True
    return bool(phase.patience and done and done - best_epoch(history, attack) > phase.patience)
