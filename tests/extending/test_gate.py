"""A gate is added by a class and its name in `GateConfig`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from fmoe import gates
from fmoe.data import Data
from fmoe.experts import Normalize
from fmoe.gates import Gate, Width
from tests.extending.added import added
from tests.extending.whole_way import few, settings, whole_way


class Net(nn.Module):
    def __init__(self, *, mean: Sequence[float], std: Sequence[float], experts: int, width: int):
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.hidden = nn.Linear(len(mean), width)
        self.head = nn.Linear(width, experts)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.head(self.hidden(self.normalize(x_BCHW).mean((2, 3))).tanh())
        return logits


class Colours(Gate):
    """By the mean of every channel."""

    kind: Literal["colours"] = "colours"
    width: Width = 4

    def build(
        self, *, shape: Sequence[int], mean: Sequence[float], std: Sequence[float], experts: int
    ) -> nn.Module:
        return Net(mean=mean, std=std, experts=experts, width=self.width)


@pytest.fixture(scope="module", autouse=True)
def _colours() -> Iterator[None]:
    with added(gates, "GateConfig", Colours):
        yield


def test_it_is_trained_resumed_saved_loaded_and_evaluated(digits: Data, tmp_path: Path) -> None:
    chosen: Any = settings("gate={kind: colours, width: 3, temperature: 2.0}")
    assert chosen.gate == Colours(width=3, temperature=2.0)
    model, found = whole_way(chosen, few(digits), tmp_path)
    assert isinstance(model.gate, Net)
    x = few(digits).test[:8].pixels()
    with torch.no_grad():
        expected = (model.gate(x) / 2.0).softmax(1)
        assert torch.allclose(model.gate_weights(x), expected)
    assert found.clean >= found.worst_case
