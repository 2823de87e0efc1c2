"""`robustbench:DATA/THREAT/NAME`: a model of RobustBench's, by its library where that is installed.

The library downloads the weights, and reads them as their authors wrote them (pickles): as with any
code of others, ask for what you trust.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fmoe.config import Evaluate
from fmoe.errors import UserError, first_line

PREFIX = "robustbench:"
EPS = {
    ("cifar10", "Linf"): ("linf", 8 / 255),
    ("cifar100", "Linf"): ("linf", 8 / 255),
    ("cifar10", "L2"): ("l2", 0.5),
    ("imagenet", "Linf"): ("linf", 4 / 255),
}
"""The boards' threat models."""


@dataclass(frozen=True)
class RobustBenchModel:
    """A `fmoe.evaluation.Subject`."""

    data: str
    threat: str
    name: str

    @classmethod
    def named(cls, model: str) -> RobustBenchModel:
        parts = model.removeprefix(PREFIX).split("/")
        if len(parts) != 3 or (parts[0], parts[1]) not in EPS:
            boards = ", ".join(f"{data}/{threat}" for data, threat in EPS)
            raise UserError(f"{model}: expected {PREFIX}DATA/THREAT/NAME, with one of {boards}")
        return cls(*parts)

    def __str__(self) -> str:
        return f"{PREFIX}{self.data}/{self.threat}/{self.name}"

    @property
    def wanted(self) -> Evaluate:
        """As the board judges."""
        norm, eps = EPS[self.data, self.threat]
        return Evaluate(norm=norm, eps=eps)

    def build(self) -> nn.Module:
        """Raises `UserError` where the library, the network or the model is not there."""
        try:
            from robustbench.utils import load_model  # type: ignore[import-untyped]
        except ImportError:
            raise UserError(
                f"{self}: needs RobustBench: "
                "pip install git+https://github.com/RobustBench/robustbench.git"
            ) from None
        try:
            model: nn.Module = load_model(self.name, dataset=self.data, threat_model=self.threat)
        except Exception as error:
            raise UserError(f"{self}: cannot be loaded ({first_line(error)})") from error
        return model.eval()
