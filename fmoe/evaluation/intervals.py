"""Confidence intervals of an accuracy, and whether two differ."""

from __future__ import annotations

from math import sqrt

from torch import Tensor

Z95 = 1.959963984540054


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95% Wilson score interval of a proportion (Wilson 1927); of nothing it is [0, 1]."""
    from scipy.stats import binomtest

    if n == 0:
        return 0.0, 1.0
    interval = binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(a: Tensor, b: Tensor) -> float:
    """Exact two-sided p-value (McNemar 1947) for two models judged on the same images.

    a, b: bool [N], whether each model is right. Only images on which they differ say anything.
    """
    from scipy.stats import binomtest

    wins, losses = int((a & ~b).sum()), int((b & ~a).sum())
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def paired(a: Tensor, b: Tensor, z: float = Z95) -> tuple[float, float]:
    """Interval of accuracy a - accuracy b on the same images, 95% by default.

    a, b: bool [N]. Wald's for paired proportions with half an image added to each of the four
    cells (Agresti & Min 2005), so that it is wide where few images differ.
    """
    n = len(a) + 2
    only_a, only_b = int((a & ~b).sum()) + 0.5, int((b & ~a).sum()) + 0.5
    difference = (only_a - only_b) / n
    half = z * sqrt(max(0.0, (only_a + only_b) / n - difference**2) / n)
    return max(-1.0, difference - half), min(1.0, difference + half)
