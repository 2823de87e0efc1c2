"""Where the time of training goes."""

from __future__ import annotations

import copy
import time

import pytest

from fmoe import assembly, config, data, training
from fmoe.numerics.clock import Clock
from fmoe.training.metrics import TIMES
from tests.conftest import SMALL


def test_seconds_are_added_up_until_they_are_taken() -> None:
    clock = Clock()
    for _ in range(2):
        with clock.on("one"):
            time.sleep(0.05)
        with clock.on("other"):
            pass
    found = clock.taken()
    assert found.keys() == {"one", "other"}
    assert 0.1 <= found["one"] < 0.2
    assert found["other"] < 0.05
    assert clock.taken() == {}


def test_a_copy_of_a_model_counts_with_it() -> None:
    clock = Clock()
    with copy.deepcopy(clock).on("one"):
        pass
    assert clock.taken().keys() == {"one"}


def test_an_epoch_says_where_its_time_went() -> None:
    chosen, digits = config.load("digits-whole", [*SMALL, "joint.epochs=1"]), data.load("digits")
    joint = chosen.joint
    given = joint.batch_size, digits.train[: 2 * joint.batch_size]
    of = training.Training(joint, joint.attack, given[1], digits.val[:32])
    (epoch,) = training.epochs(assembly.seeded_mixture(chosen), of)
    told = {name: epoch.metrics[name] for name in TIMES if name in epoch.metrics}
    assert told.keys() == {"crafting_seconds", "descent_seconds", "data_seconds"}
    assert min(told.values()) > 0
    assert sum(told.values()) == pytest.approx(epoch.metrics["train_seconds"], rel=0.3)
