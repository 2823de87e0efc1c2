"""What every test shares: few threads, a home of its own, small networks and real digits."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from fmoe import config, data
from fmoe.config import Config
from fmoe.data import Data
from fmoe.evaluation import standard

if TYPE_CHECKING:
    from pyautoattack import AutoAttack

# Ray gives its workers a low priority: tests beside them would take all of the processor
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
# a shell's background job starts with SIGINT ignored, and so would what it starts
signal.signal(signal.SIGINT, signal.default_int_handler)

SMALL = [
    "experts.backbone.width=4",
    "experts.train.epochs=1",
    "joint.epochs=2",
    "gate.width=4",
    "experts.roles.fgsm.count=1",
    "experts.roles.pgd.count=1",
    "joint.validation.images=32",
    "experts.train.validation.images=32",
]
MEMBER = ("benign", 0)
"""The first of its experts."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What goes over the whole once more comes last: see `LAST_START`."""
    order = {name: place for place, name in enumerate(LAST, 1)}
    items.sort(key=lambda item: order.get(item.path.name, 0))


LAST = ("test_start.py", "test_extending.py", "test_own_problem.py", "test_installed.py",
        "test_pages.py")  # fmt: skip
LAST_START = float(os.environ.get("FMOE_TESTS_LAST_START", "inf"))
"""Seconds since 1970 after which no test of Ray is begun: where CI is cut off at a fixed time, and
machines differ by a factor of three, the last ones are named as not tested and lose no others."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if "tests/integration" in item.path.as_posix() and time.time() > LAST_START:
        pytest.skip("NOT TESTED: there is no time left for it here")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _warnings_are_logged() -> None:
    """Once: pytest's own `log_level` sets it twelve times a test, and each time Python goes through
    all the loggers that there are."""
    logging.getLogger().setLevel(logging.WARNING)


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home a test, numbered here: pytest would look through all folders for each."""
    folder = tmp_path_factory.mktemp("homes")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def _own_home(homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own runs, data or MLflow store."""
    home = next(homes)
    home.mkdir()
    monkeypatch.setenv("FMOE_HOME", str(home))
    for name in ("FMOE_DATA_DIR", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _coverage_goes_on() -> Iterator[None]:
    """pyautoattack called directly ends tracing for the whole process, and coverage with it."""
    trace = sys.gettrace()
    yield
    sys.settrace(trace)


@pytest.fixture(scope="module")
def few_queries() -> Iterator[None]:
    """AutoAttack's last part asks 5,000 times about each image that is left: 200 times from here on
    in a module that is about anything but its strength."""
    fit = standard._fit

    def fewer(library: AutoAttack, classes: int) -> None:
        fit(library, classes)
        library.square.n_queries = 200

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(standard, "_fit", fewer)
        yield


@pytest.fixture(scope="session")
def digits() -> Data:
    return data.load("digits")


@pytest.fixture(scope="session")
def few(digits: Data) -> Data:
    """64 images to train on and 32 to validate on."""
    return replace(digits, train=digits.train[:64], val=digits.val[:32])


@pytest.fixture
def small() -> Config:
    """The digits recipe with three width-4 experts and an epoch or two."""
    return config.load("digits-whole", SMALL)
