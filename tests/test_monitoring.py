"""What nodes are busy with, in a real store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from fmoe import tracking
from fmoe.tracking import Tracker
from fmoe.tracking.monitoring import SWITCH, SYSTEM, Monitor


@pytest.fixture
def tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tracker]:
    monkeypatch.setenv("FMOE_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    tracking.readiness.check()
    made = Tracker.start("watched", {}, {}, None)
    yield made
    made.finish("FINISHED")


def metrics(tracker: Tracker) -> dict[str, float]:
    store: MlflowClient = tracker.store
    return dict(store.get_run(tracker.run_id).data.metrics)


def test_a_node_is_watched_as_long_as_the_block_runs(tracker: Tracker) -> None:
    with Monitor(tracker.run_id, tracker.store.tracking_uri).on("10.0.0.1"):
        time.sleep(1)
    found = metrics(tracker)
    assert f"{SYSTEM}10.0.0.1/cpu_utilization_percentage" in found
    assert 0 < found[f"{SYSTEM}10.0.0.1/system_memory_usage_percentage"] < 100
    again = Tracker.start("watched", {}, {}, tracker.run_id)
    assert again.logged == set(), "what MLflow logs by itself is none of ours"


def test_two_nodes_are_told_apart(tracker: Tracker) -> None:
    monitor = Monitor(tracker.run_id, tracker.store.tracking_uri)
    with monitor.on("one"), monitor.on("other"):
        time.sleep(1)
    nodes = {name.split("/")[1] for name in metrics(tracker) if name.startswith(SYSTEM)}
    assert nodes == {"one", "other"}


def test_it_can_be_switched_off(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "false")
    with Monitor(tracker.run_id, tracker.store.tracking_uri).on("node"):
        time.sleep(0.3)
    assert metrics(tracker) == {}
