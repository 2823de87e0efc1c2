"""A user's mistakes: exit code 2, one line, nothing lost."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.conftest import Outcome, Trained

Fmoe = Callable[..., Outcome]


def refused(outcome: Outcome, *parts: str) -> None:
    lines = outcome.err.splitlines()
    assert (outcome.code, len(lines), outcome.out) == (2, 1, ""), outcome
    for part in parts:
        assert part in lines[0], lines[0]


def parquet_without_label(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "cifar10").mkdir()
    for part in ("train", "test"):
        pq.write_table(
            pa.table({"img": [{"bytes": b"x", "path": "x"}]}),
            folder / "cifar10" / f"{part}-00000-of-00001.parquet",
        )
    return folder


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train", "nonesuch"], ["unknown recipe 'nonesuch'", "cifar10-small", "digits"]),
        (["train", "digits", "--set", "joint.epoch=3"], ["joint", "epoch", "epochs"]),
        (
            ["train", "digits", "--set", "experts.backbone.width=1000000000"],
            ["experts.backbone.width", "1024"],
        ),
        (["train", "digits", "--set", "experts.width=8"], ["is now experts.backbone.width"]),
        (["train", "digits", "--set", "seed"], ["path=value"]),
        (["train", "digits", "--workers", "0"], ["--workers"]),
        (["train", "digits", "--nonesuch"], ["--nonesuch"]),
        (["train", "digits", "--name", "../x"], ["--name"]),
        (["train", "digits", "--storage", "nonesuch://x/y"], ["nonesuch://x/y"]),
        (["train", "cifar10"], ["fmoe data prepare cifar10"]),
        (["train", "cifar10", "--data-dir", "/nonesuch"], ["/nonesuch"]),
        (["evaluate", "/nonesuch"], ["/nonesuch"]),
        (["evaluate", "models:/nonesuch@candidate"], ["models:/nonesuch@candidate"]),
        (["evaluate", "models:/nonesuch"], ["models:/NAME/VERSION"]),
        (["pull", "models:/nonesuch/1", "--to", "x"], ["models:/nonesuch/1"]),
        (["pull", "/nonesuch", "--to", "x"], ["registry URI"]),
        (["data", "prepare", "kmnist"], ["kmnist", "cifar10"]),
        (["tune", "nonesuch"], ["unknown space 'nonesuch'", "cifar10-small", "digits"]),
        (["nonesuch"], ["nonesuch"]),
    ],
)
def test_refused_with_one_line(fmoe: Fmoe, arguments: list[str], parts: list[str]) -> None:
    refused(fmoe(*arguments), *parts)


def test_parquet_without_label(fmoe: Fmoe, tmp_path: Path) -> None:
    folder = parquet_without_label(tmp_path)
    refused(fmoe("train", "cifar10-small", "--data-dir", folder), ".parquet", "label")


def test_truncated_weights(fmoe: Fmoe, model_copy: Path) -> None:
    weights = model_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(fmoe("evaluate", model_copy), "model.safetensors")


def test_a_doctored_digest_does_not_help(fmoe: Fmoe, model_copy: Path) -> None:
    """Truncated weights whose digest in model.json was corrected."""
    import hashlib
    import json

    weights, card = model_copy / "model.safetensors", model_copy / "model.json"
    weights.write_bytes(weights.read_bytes()[:1000])
    tree = json.loads(card.read_text())
    tree["sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    card.write_text(json.dumps(tree))
    refused(fmoe("evaluate", model_copy), "model.safetensors")


def test_a_name_that_mlflow_would_refuse_after_hours(fmoe: Fmoe) -> None:
    refused(fmoe("train", "digits", "--register-as", "team/model"), "--register-as team/model")
    space = ("tune", "digits", "--register-as", "a:b")
    refused(fmoe(*space), "--register-as a:b")


def test_batches_that_cannot_be_are_refused_before_anything_is_trained(fmoe: Fmoe) -> None:
    refused(fmoe("train", "digits", "--set", "joint.batch_size=5000"), "batch_size: 5000 is more")
    refused(fmoe("train", "digits", "--set", "joint.accumulate=64"), "accumulate: 64 parts")


def test_missing_and_damaged_images(fmoe: Fmoe, trained: Trained, tmp_path: Path) -> None:
    run = trained.answer["run_dir"]
    refused(fmoe("predict", run, tmp_path / "no.png"), "no.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG nothing")
    refused(fmoe("predict", run, tmp_path / "bad.png"), "bad.png")


def test_unknown_attack_and_eps(fmoe: Fmoe, trained: Trained) -> None:
    run = trained.answer["run_dir"]
    refused(fmoe("evaluate", run, "--attacks", "pgd,nonesuch"), "nonesuch", "autoattack")
    refused(fmoe("evaluate", run, "--eps", "8/0"), "--eps")
    refused(fmoe("evaluate", run, "--eps", "9"), "--eps")


def test_pull_does_not_overwrite_what_is_no_model(
    fmoe: Fmoe, trained: Trained, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    refused(fmoe("pull", trained.answer["model_uri"], "--to", tmp_path / "mine"), "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "mine" / "model.json").write_text("{}")  # a common name
    refused(fmoe("pull", trained.answer["model_uri"], "--to", tmp_path / "mine"), "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_pull_into_the_working_directory_is_refused(
    fmoe: Fmoe, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(fmoe("pull", trained.answer["model_uri"], "--to", "."), "is the working directory")
    assert not list(tmp_path.iterdir())


def test_weights_swapped_in_the_registry_are_refused(
    fmoe: Fmoe, trained: Trained, tmp_path: Path
) -> None:
    """A whole, consistent model folder that is not the one registered."""
    from mlflow.tracking import MlflowClient

    from fmoe import tracking

    client = MlflowClient(tracking.store_uri())
    client.set_model_version_tag("fmoe-digits", "1", "fmoe.sha256", "0" * 64)
    try:
        refused(fmoe("pull", "models:/fmoe-digits/1", "--to", tmp_path / "m"), "sha256")
    finally:
        client.set_model_version_tag("fmoe-digits", "1", "fmoe.sha256", trained.answer["digest"])
    assert not (tmp_path / "m").exists()


def test_a_doctored_configuration_in_the_registry_is_refused(
    fmoe: Fmoe, trained: Trained, tmp_path: Path
) -> None:
    """The registered weights under another temperature, every digest in the folder made to fit."""
    from mlflow.tracking import MlflowClient

    from fmoe import tracking

    client = MlflowClient(tracking.store_uri())
    place = client.get_model_version_download_uri("fmoe-digits", "1").removeprefix("file://")
    files = Path(place) / "extra_files"
    before = {name: (files / name).read_bytes() for name in ("config.yaml", "model.json")}
    tree = before["config.yaml"].replace(b"temperature: 1.0", b"temperature: 9.0")
    assert tree != before["config.yaml"]
    card = json.loads(before["model.json"]) | {"config_sha256": hashlib.sha256(tree).hexdigest()}
    try:
        (files / "config.yaml").write_bytes(tree)
        (files / "model.json").write_text(json.dumps(card))
        outcome = fmoe("pull", "models:/fmoe-digits/1", "--to", tmp_path / "m")
    finally:
        for name, data in before.items():
            (files / name).write_bytes(data)
    refused(outcome, "models:/fmoe-digits/1", "model.json is not what was registered")
    assert not (tmp_path / "m").exists()


def test_a_configuration_that_is_no_text(fmoe: Fmoe, model_copy: Path) -> None:
    (model_copy / "config.yaml").write_bytes(b"\xff\xfe\x00")
    card = json.loads((model_copy / "model.json").read_text())
    card["config_sha256"] = hashlib.sha256(b"\xff\xfe\x00").hexdigest()
    (model_copy / "model.json").write_text(json.dumps(card))
    refused(fmoe("evaluate", model_copy), "config.yaml: not a YAML file")
    (model_copy / "config.yaml").unlink()
    (model_copy / "config.yaml").mkdir()
    refused(fmoe("evaluate", model_copy), "config.yaml: cannot be read")


def test_tracking_server_that_is_away(fmoe: Fmoe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    refused(fmoe("train", "digits"), "http://127.0.0.1:9", "away")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9/")
    outcome = fmoe("train", "digits")
    refused(outcome, "http://127.0.0.1:9/", "away")
    assert "hunter2" not in outcome.err


def test_no_traceback_from_the_installed_command(tmp_path: Path) -> None:
    """The same through a process of its own, as a module."""
    result = subprocess.run(
        [sys.executable, "-m", "pipelines.train", "digits", "--set", "gate.kind=nonesuch"],
        capture_output=True,
        text=True,
        env={**os.environ, "FMOE_HOME": str(tmp_path)},
        check=False,
    )
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "gate" in result.stderr
    assert list(tmp_path.iterdir()) == []
