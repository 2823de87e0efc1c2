"""Metrics as TensorBoard's events, read back."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from tensorboardX.proto import event_pb2

from fmoe.errors import UserError
from fmoe.tracking import Tracker, finishing, readiness


def events(folder: Path) -> list[tuple[str, float, int]]:
    """Name, value, step: records are a length, its checksum, an Event and its checksum."""
    found = []
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            found += [(one.tag, one.simple_value, event.step) for one in event.summary.value]
    return found


def test_each_metric_of_a_step_is_an_event_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMOE_TENSORBOARD", str(tmp_path / "boards"))
    with finishing(Tracker.start("a", {}, {}, None)) as tracker:
        tracker.log({"val_clean": 0.5}, 0)
        tracker.log_expert("fgsm-0", {"val_clean": 0.25}, 0)
        tracker.log({"val_clean": 0.5}, 0)
        tracker.log({"val_clean": 0.75}, 1)
    again = Tracker.start("a", {}, {}, tracker.run_id)
    again.log({"val_clean": 0.75}, 1)
    again.log_expert("fgsm-0", {"val_clean": 0.25}, 0)
    again.log({"val_clean": 1.0}, 2)
    again.finish("FINISHED")
    again.log({"test_clean": 0.125}, 2)
    again.finish("FINISHED")
    assert sorted(events(tmp_path / "boards" / "a")) == [
        ("expert/fgsm-0/val_clean", 0.25, 0),
        ("test_clean", 0.125, 2),
        ("val_clean", 0.5, 0),
        ("val_clean", 0.75, 1),
        ("val_clean", 1.0, 2),
    ]


def test_none_where_none_are_asked_for() -> None:
    tracker = Tracker.start("a", {}, {}, None)
    assert tracker.board is None
    tracker.finish("FINISHED")


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is trained."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FMOE_TENSORBOARD", str(tmp_path / "file" / "boards"))
    with pytest.raises(UserError, match=r"FMOE_TENSORBOARD=.*/boards: cannot be written"):
        readiness.check()
