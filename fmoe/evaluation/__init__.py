"""Clean and robust accuracy by the protocol: float32, eval mode, fixed seed, worst case.

    result = evaluate(model, images, labels, attacks=["fgsm", "pgd"], eps=8 / 255)

Images are judged in chunks, each on its own and with draws of its own, so that the verdicts do not
depend on how many workers share the chunks.
"""

from fmoe.evaluation.chunk import StageResult
from fmoe.evaluation.intervals import mcnemar, paired, wilson
from fmoe.evaluation.protocol import evaluate, judge, plan, summarise
from fmoe.evaluation.result import Evaluation
from fmoe.evaluation.settings import FULL, PROTOCOL, STANDARD, Settings

__all__ = [
    "FULL",
    "PROTOCOL",
    "STANDARD",
    "Evaluation",
    "Settings",
    "StageResult",
    "evaluate",
    "judge",
    "mcnemar",
    "paired",
    "plan",
    "summarise",
    "wilson",
]
