"""A gate is added by a class and its name in `GateConfig`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fmoe.data import Data
from fmoe.models import gates
from tests.extending.added import added
from tests.extending.document import section
from tests.extending.whole_way import few, settings, whole_way

CODE = section("A gate")
Net = CODE.Net
Colours = CODE.Colours


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
