"""Schedulers and searchers that stand in a test alone, in studies on real Ray Tune."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.extending.studies import with_kind
from tests.extending.test_scheduler import Median
from tests.extending.test_searcher import Corners
from tests.integration.spaces import space, study


def test_a_study_by_an_added_scheduler_and_searcher(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_kind(monkeypatch, "scheduler", Median)
    with_kind(monkeypatch, "searcher", Corners)
    file = space(
        tmp_path,
        {"joint.optimizer.lr": {"uniform": [0.02, 0.1]}},
        scheduler={"kind": "median", "grace": 1},
        searcher={"kind": "corners"},
        set={"data.train_images": 160},
    )
    answer = study(tmp_path, file, "added", monkeypatch, trials=5)
    assert [trial["values"] for trial in answer["trials"]] == [
        {},
        {"joint.optimizer.lr": 0.02},
        {"joint.optimizer.lr": 0.1},
    ]
    assert answer["counts"]["failed"] == 0
    assert answer["trials"][0]["status"] == "finished"
    assert "fmoe-digits" in answer["best"]["model_uri"]
