"""`fmoe evaluate` and `fmoe compare` on a trained mixture: report, verdicts, a kill."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from fmoe import assembly, config, data, model_folder
from fmoe.evaluation import STANDARD
from fmoe.storage.folder import Folder
from tests.integration.conftest import (
    JUDGED,
    Outcome,
    Trained,
    evaluate_command,
    evaluate_environment,
)
from tests.integration.test_errors import refused
from tests.networks import settled

Fmoe = Callable[..., Outcome]


def timeless(answer: dict[str, Any]) -> dict[str, Any]:
    moment = ("seconds", "attack_seconds", "at", "report", "recorded", "model")
    return {key: value for key, value in answer.items() if key not in moment}


def test_answer_and_files(judged: dict[str, Any]) -> None:
    assert {"clean", "robust", "worst_case", "flags", "images", "seconds"} <= judged.keys()
    assert judged["images"] == JUDGED
    assert {"fgsm", "pgd", "gate-only", "frozen-gate", "transfer"} <= judged["robust"].keys()
    assert judged["worst_case"] <= min(judged["robust"].values())
    folder = Path(judged["report"]).parent
    assert json.loads((folder / "evaluation.json").read_text())["robust"] == judged["robust"]
    plots = {path.stem for path in (folder / "plots").iterdir()}
    assert {"transfer_matrix", "gate_weights", "accuracy_against_eps", "worst_images"} <= plots
    page = (folder / "index.html").read_text()
    assert page.count("data:image/png;base64,") == len(plots)
    for flag in judged["flags"]:
        assert flag.split(":")[0] in page


def test_verdicts_give_the_figures_again(judged: dict[str, Any]) -> None:
    rows = pq.read_table(Path(judged["report"]).parent / "verdicts.parquet").to_pylist()
    assert [row["image"] for row in rows] == list(range(JUDGED))
    right = [row for row in rows if row["prediction"] == row["label"]]
    assert len(right) / JUDGED == judged["clean"]
    left = [row for row in right if not row["success_pgd"]]
    assert len(left) / JUDGED == judged["robust"]["pgd"]
    attacks = list(judged["robust"])
    alive = [row for row in right if not any(row[f"success_{name}"] for name in attacks)]
    assert len(alive) / JUDGED == judged["worst_case"]
    for row in right:
        if row["success_pgd"]:
            assert row["prediction_pgd"] != row["label"]
            assert row["smallest_eps"] <= judged["eps"] * 1.001
    assert all(row["smallest_eps"] == 0 for row in rows if row not in right)


def test_killed_and_started_again_gives_the_same(
    trained: Trained, judged: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = trained.home / "evaluations"
    assert not list(place.glob("*/*"))
    first = subprocess.Popen(
        evaluate_command(trained),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=evaluate_environment(trained),
    )
    deadline = time.monotonic() + 100
    while len(kept := list(place.glob("*/*.safetensors"))) < 3:
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.kill()
    first.communicate()
    written = {path: path.stat().st_mtime_ns for path in kept}
    spoiled = max(kept)
    spoiled.write_bytes(spoiled.read_bytes()[:-9])  # as a full disk would leave it
    again = subprocess.Popen(
        evaluate_command(trained),
        stdout=subprocess.PIPE,
        text=True,
        env=evaluate_environment(trained),
    )
    while again.poll() is None:
        for path, at in written.items():
            if path != spoiled and path.exists():
                assert path.stat().st_mtime_ns == at, "a finished stage was repeated"
        time.sleep(0.05)
    out, _ = again.communicate()
    assert timeless(json.loads(out.splitlines()[-1])) == timeless(judged)
    assert not list(place.glob("*/*"))


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """A model folder of one untrained expert."""
    one = ["experts.roles={benign: {count: 1}}", "experts.backbone.width=4"]
    recipe = config.load("digits-whole", one)
    model = assembly.seeded_mixture(recipe)
    extra = {"selected_on": "validation"}
    model_folder.save_model(
        Folder.at(tmp_path / "one"), model.state_dict(), recipe, data_digest="", metrics={},
        extra=extra,
    )  # fmt: skip
    return tmp_path / "one"


def test_workers_normalise_as_the_folder_says(fmoe: Fmoe, tmp_path: Path) -> None:
    """And not as the table of data sets does today."""
    one = ["experts.roles={benign: {count: 1}}", "experts.backbone.width=4"]
    recipe, digits = config.load("digits-whole", one), data.load("digits")
    own = replace(assembly.facts_of(recipe), mean=(0.9,), std=(0.05,))
    torch.manual_seed(0)  # of some networks all images get one class, by either
    model, other = assembly.mixture(recipe, own), assembly.mixture(recipe)
    other.load_state_dict(settled(model).state_dict())
    x = digits.test[:40].pixels()
    with torch.no_grad():
        expected, by_table = (net.eval()(x).argmax(1).tolist() for net in (model, other))
    assert expected != by_table
    folder, page = tmp_path / "model", tmp_path / "page"
    model_folder.save_model(
        Folder.at(folder), model.state_dict(), recipe, data_digest="", metrics={}, facts=own
    )
    options = ("--attacks", "fgsm", "--limit", "40", "--report", page, "--json")
    assert fmoe("evaluate", folder, *options).json["images"] == 40
    rows = pq.read_table(page / "verdicts.parquet").to_pylist()
    assert [row["prediction"] for row in rows] == expected


@pytest.mark.parametrize("attacks", ["fgsm", "fgsm,pgd,mixture", "transfer"])
def test_a_page_of_what_was_run_alone(
    trained: Trained, single: Path, fmoe: Fmoe, tmp_path: Path, attacks: str
) -> None:
    """Of one expert, and of few attacks on several: no part of the page needs another."""
    for model in (str(single), trained.answer["run_dir"]):
        options = ("--attacks", attacks, "--limit", "12", "--report", tmp_path / "page")
        assert fmoe("evaluate", model, *options, "--json").json["images"] == 12
        assert "worst case" in (tmp_path / "page" / "index.html").read_text()


def test_a_mixture_beside_a_single_network(
    trained: Trained, single: Path, fmoe: Fmoe, tmp_path: Path
) -> None:
    options = ("--limit", "12", "--attacks", "fgsm,gate-only", "--report", tmp_path / "page")
    outcome = fmoe("compare", trained.answer["run_dir"], single, *options)
    assert outcome.code == 0, outcome.err
    assert f"{single}: not attacked by all of them" in outcome.out
    row = next(line for line in outcome.out.splitlines() if line.startswith(str(single)))
    assert "–" in row


def test_what_is_done_is_kept_until_it_is_told(
    trained: Trained, fmoe: Fmoe, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    options = ("--attacks", "fgsm", "--limit", "10", "--report", tmp_path / "file" / "page")
    refused(fmoe("evaluate", trained.answer["run_dir"], *options), "cannot be written")
    assert list((trained.home / "evaluations").glob("*/*"))
    options = (*options[:-1], tmp_path / "page")
    assert fmoe("evaluate", trained.answer["run_dir"], *options).code == 0
    assert not list((trained.home / "evaluations").glob("*/*"))


def test_compare(trained: Trained, fmoe: Fmoe, tmp_path: Path) -> None:
    run, uri = trained.answer["run_dir"], trained.answer["model_uri"]
    options = ("--attacks", "fgsm,pgd,steps", "--limit", "60", "--report", tmp_path / "page")
    answer = fmoe("compare", run, uri, *options, "--json").json
    assert [model["model"] for model in answer["models"]] == [run, uri]
    assert {row["attack"] for row in answer["differences"]} == {
        "clean", "fgsm", "pgd", "worst_case",
    }  # fmt: skip
    assert all((row["difference"], row["p_value"]) == (0, 1) for row in answer["differences"])
    assert "McNemar" in (tmp_path / "page" / "index.html").read_text()
    assert (tmp_path / "page" / "model-1" / "verdicts.parquet").exists()
    refused(fmoe("compare", run), "two models or more")


def test_bad_requests(trained: Trained, fmoe: Fmoe) -> None:
    run = trained.answer["run_dir"]
    refused(fmoe("evaluate", run, "--attacks", "apgd"), "unknown attack 'apgd'", *STANDARD)
    refused(fmoe("evaluate", run, "--full", "--attacks", "pgd"), "leave out --attacks")
    if not torch.cuda.is_available():
        refused(fmoe("evaluate", run, "--gpu"), "--gpu: this machine has no GPU")
