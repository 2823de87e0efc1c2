"""A training loss is added by a class and its name in `LossConfig`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fmoe import losses
from fmoe.data import Data
from fmoe.losses import Forward
from fmoe.schema import Spec
from tests.extending.added import added
from tests.extending.whole_way import few, settings, whole_way


class Focal(Spec):
    """(1 - p_y)^gamma times cross-entropy on the adversarial images (arXiv 1708.02002)."""

    kind: Literal["focal"] = "focal"
    gamma: Annotated[float, Field(ge=0, le=10)] = 2.0

    def __call__(
        self, forward: Forward, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        out = forward(x_adv).float()
        entropy = F.cross_entropy(out, y, reduction="none")
        return (1 - torch.exp(-entropy)) ** self.gamma * entropy, out


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
