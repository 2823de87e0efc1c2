"""What a study keeps of its trials, and what it makes of them."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow.parquet as pq
import pytest

from fmoe.storage.folder import Damaged, Folder
from fmoe.tuning.settings import Direction
from fmoe.tuning.trials import Ledger, Trial, best_so_far, pareto, ranked, table

ROBUST: dict[str, Direction] = {"val_robust": "max"}
BOTH: dict[str, Direction] = {"val_clean": "max", "val_robust": "max"}


def trial(number: int, *robust: float, clean: float = 0.9, **about: Any) -> Trial:
    history = [
        {"val_robust": value, "val_clean": clean, "train_loss": 1 - value, "at": 10.0 * number + i}
        for i, value in enumerate(robust)
    ]
    return Trial(number, about.pop("values", {}), history=history, **about)


def test_figures_are_those_of_the_best_epoch() -> None:
    one = trial(0, 0.2, 0.5, 0.4)
    assert one.best(ROBUST) == 1
    assert one.figures(BOTH | {"train_loss": "min"}) == {
        "val_clean": 0.9,
        "val_robust": 0.2,  # clean accuracy comes first here, and its first epoch is as good
        "train_loss": 0.8,
    }
    assert one.best({"train_loss": "min"}) == 1
    assert one.best({"train_loss": "max"}) == 0
    assert trial(1).best(ROBUST) is None
    assert trial(1).figures(ROBUST) is None


def test_ranking_is_by_the_metric_and_leaves_out_what_failed() -> None:
    trials = [trial(0, 0.2), trial(1, 0.5), trial(2), trial(3, 0.9, status="failed"), trial(4, 0.5)]
    assert [t.number for t in ranked(trials, ROBUST)] == [1, 4, 0]
    assert [t.number for t in ranked(trials, {"train_loss": "max"})] == [0, 1, 4]


def test_front_by_hand() -> None:
    trials = [
        trial(0, 0.50, clean=0.80),
        trial(1, 0.40, clean=0.90),  # on the front
        trial(2, 0.55, clean=0.85),  # on the front, beats 0
        trial(3, 0.55, clean=0.70),
        trial(4, 0.60, clean=0.60),  # on the front
        trial(5, 0.55, clean=0.85),  # as 2: neither beats the other
        trial(6, 0.99, clean=0.99, status="failed"),
    ]
    assert [t.number for t in pareto(trials, BOTH)] == [1, 2, 4, 5]
    assert [t.number for t in ranked(trials, BOTH)] == [1, 2, 5, 4, 0, 3]
    assert [t.number for t in pareto(trials[:2], {"val_robust": "min"})] == [1]


def test_best_so_far_follows_time_and_not_number() -> None:
    late = trial(0, 0.3, 0.8)
    for epoch, at in zip(late.history, (50.0, 60.0), strict=True):
        epoch["at"] = at
    assert best_so_far([late, trial(1, 0.2, 0.4)], "val_robust", "max") == [
        (10.0, 0.2),
        (11.0, 0.4),
        (60.0, 0.8),
    ]
    assert best_so_far([late, trial(1, 0.2)], "val_robust", "min") == [(10.0, 0.2)]


def test_table_has_a_row_per_trial_and_epoch() -> None:
    trials = [
        trial(0, 0.2, 0.3, values={"gate.kind": "conv", "gate.width": 4, "eps": [0.1]}),
        trial(1, status="failed", error="NaN", values={"gate.kind": "linear", "eps": [0.1, 0.2]}),
        trial(2, 0.1, values={"gate.kind": "conv", "gate.width": 8, "eps": 0.5}),
    ]
    rows = table(trials).to_pylist()
    assert [(row["trial"], row["epoch"], row["status"]) for row in rows] == [
        (0, 0, "running"),
        (0, 1, "running"),
        (1, None, "failed"),
        (2, 0, "running"),
    ]
    assert [row["val_robust"] for row in rows] == [0.2, 0.3, None, 0.1]
    assert [row["value.gate.width"] for row in rows] == [4, 4, None, 8]
    assert [json.loads(row["value.eps"]) for row in rows] == [[0.1], [0.1], [0.1, 0.2], 0.5]
    assert rows[2]["error"] == "NaN"
    assert rows[0]["value.gate.kind"] == "conv"


@pytest.fixture
def ledger(tmp_path: Any) -> Ledger:
    return Ledger(Folder.at(tmp_path))


def test_ledger_gives_back_what_it_was_given(ledger: Ledger) -> None:
    trials = [
        trial(11, 0.25, 1 / 3, values={"a.b": [1, "x", None]}, status="pruned", run_id="r"),
        trial(2, search={"generation": 1}, experts={"trained": 2}),
    ]
    for one in trials:
        ledger.save(one)
    assert ledger.trials() == [trials[1], trials[0]]
    ledger.write_table(trials)
    read = pq.read_table(io.BytesIO(ledger.folder.read("study.parquet")))
    assert read.num_rows == 3


@pytest.mark.parametrize("text", ["{", "[]", '{"number": 1, "values": {}, "evil": 1}', "{}"])
def test_a_damaged_trial_is_named(ledger: Ledger, text: str) -> None:
    ledger.trial_folder(1).write("trial.json", text.encode())
    with pytest.raises(Damaged, match=r"trials/0001/trial\.json"):
        ledger.trials()
