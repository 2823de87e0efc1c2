"""Clean and robust accuracy by the protocol: float32, eval mode, fixed seed, worst case.

    result = evaluate(model, images, labels, attacks=["fgsm", "pgd"], eps=8 / 255)

Images are judged in chunks, each on its own and with draws of its own, so that the verdicts do not
depend on how many workers share the chunks.
"""

from fmoe.evaluation.intervals import mcnemar, wilson
from fmoe.evaluation.protocol import (
    PROTOCOL,
    Evaluation,
    Settings,
    Verdicts,
    evaluate,
    judge_chunk,
    summarise,
)
from fmoe.evaluation.standard import ATTACKS

__all__ = [
    "ATTACKS",
    "PROTOCOL",
    "Evaluation",
    "Settings",
    "Verdicts",
    "evaluate",
    "judge_chunk",
    "mcnemar",
    "summarise",
    "wilson",
]
