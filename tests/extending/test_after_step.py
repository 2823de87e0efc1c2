"""What follows a step is added by a class and its name in `AfterStepConfig`: the weights' mean."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fmoe import after_step
from fmoe.config import Config
from fmoe.data import Data
from fmoe.errors import UserError
from tests.extending.added import added
from tests.extending.document import section
from tests.extending.whole_way import few, joint_phase, latest, resumed, settings

Swa = section("What follows a step").Swa
SWA = "joint.after_step=[{kind: swa, start: 1}]"


@pytest.fixture(autouse=True, scope="module")
def _added() -> Iterator[None]:
    with added(after_step, "AfterStepConfig", Swa):
        yield


def test_it_is_named_in_an_override_beside_the_other() -> None:
    both = "joint.after_step=[{kind: ema}, {kind: swa, start: 1}]"
    assert [one.kind for one in settings(both).joint.after_step] == ["ema", "swa"]
    assert Config.model_validate(settings(both).plain()) == settings(both)
    with pytest.raises(UserError, match=r"joint\.after_step\.0.*start"):
        settings("joint.after_step=[{kind: swa, start: -1}]")


def test_a_resumed_mixture_and_its_mean_are_the_same_bits(digits: Data, tmp_path: Path) -> None:
    _, kept = resumed(settings(SWA), few(digits), tmp_path)
    families = latest(kept).families
    assert {"model", "optimizer:sgd", "after:swa"} <= families.keys()
    assert families["after:swa"]["count"] > 0


def test_it_is_offered_once_it_has_begun(digits: Data, tmp_path: Path) -> None:
    late = settings("joint.after_step=[{kind: swa, start: 100000}]")
    (epochs, kept), (told, _) = (
        joint_phase(chosen, few(digits), tmp_path / name)
        for name, chosen in (("late", late), ("at once", settings(SWA)))
    )
    assert not any("swa_val_robust" in epoch.metrics for epoch in epochs)
    assert all("swa_val_robust" in epoch.metrics for epoch in told)
    assert torch.equal(latest(kept).families["after:swa"]["count"], torch.zeros(()))
