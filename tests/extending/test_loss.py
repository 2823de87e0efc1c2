"""A training loss is added by a class and its name in `LossConfig`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fmoe import losses
from fmoe.data import Data
from tests.extending.added import added
from tests.extending.document import section
from tests.extending.whole_way import few, settings, whole_way

CODE = section("A loss")
Focal = CODE.Focal


@pytest.fixture(scope="module", autouse=True)
def _focal() -> Iterator[None]:
    with added(losses, "LossConfig", Focal):
        yield


def test_it_is_trained_resumed_saved_loaded_and_evaluated(digits: Data, tmp_path: Path) -> None:
    chosen: Any = settings(
        "joint.loss={kind: focal, gamma: 1.5}", "experts.train.loss={kind: focal}"
    )
    assert chosen.joint.loss == Focal(gamma=1.5)
    _, found = whole_way(chosen, few(digits), tmp_path)
    assert 0 <= found.worst_case <= found.clean <= 1
