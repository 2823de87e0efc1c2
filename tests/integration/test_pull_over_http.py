"""`fmoe pull` from an MLflow server that asks for a password, and from a doctored registry."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from fmoe import model_card, model_folder, tracking
from fmoe.storage.folder import Folder
from tests.integration.conftest import Outcome, Trained
from tests.integration.test_errors import refused

Fmoe = Callable[..., Outcome]
PASSWORD = secrets.token_hex(16)


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """With `--app-name basic-auth`, on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\nadmin_username = admin\n"
        f"admin_password = {PASSWORD}\ndatabase_uri = sqlite:///{folder}/auth.db\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"),
                *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
                *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
                *("--artifacts-destination", str(folder / "artifacts")),
            ],
            env={
                **os.environ,
                "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
                "MLFLOW_FLASK_SERVER_SECRET_KEY": "for-this-test",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 90
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{uri}/health", timeout=2).read()
                break
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.3)
        yield uri
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        process.wait()


def test_pull_with_a_password(
    fmoe: Fmoe, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(trained.answer["run_dir"]) / "model"
    model, _, card = model_folder.load_model(Folder.at(folder))
    with server(tmp_path) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        tracker = tracking.Tracker.start("remote", {}, {}, None)
        tags = {"fmoe.sha256": card["sha256"]}
        tracker.register(model, folder, "remote", (1, 8, 8), tags)
        tracker.finish("FINISHED")
        pulled = fmoe("pull", "models:/remote@candidate", "--to", tmp_path / "model", "--json").json
        assert pulled["digest"] == card["sha256"]
        weights = (tmp_path / "model" / "model.safetensors").read_bytes()
        assert hashlib.sha256(weights).hexdigest() == card["sha256"]
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "guessed-wrong")
        outcome = fmoe("pull", "models:/remote@candidate", "--to", tmp_path / "other")
        refused(outcome, "models:/remote@candidate")
        assert "guessed-wrong" not in outcome.err
        assert not (tmp_path / "other").exists()


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.mark), "w")


@pytest.mark.parametrize(
    "hidden_as", ["model.safetensors", "model.pth", "data/model.pth", "extra_files/README.md"]
)
def test_a_pickle_in_the_registry_is_never_read(
    fmoe: Fmoe, trained: Trained, tmp_path: Path, hidden_as: str
) -> None:
    """Also where every digest was doctored to fit: card, version tag, and all."""
    mark = tmp_path / "executed"
    payload = pickle.dumps(Payload(mark))
    pickle.loads(payload).close()
    assert mark.exists()  # the payload works
    mark.unlink()
    client = MlflowClient(tracking.store_uri())
    version = client.get_model_version("fmoe-digits", "1")
    place = Path(client.get_model_version_download_uri("fmoe-digits", "1").removeprefix("file://"))
    files = place / "extra_files"
    evil = (files if hidden_as == "model.safetensors" else place) / hidden_as
    before = evil.read_bytes() if evil.exists() else None
    card_before = (files / "model.json").read_bytes()
    evil.parent.mkdir(exist_ok=True)
    evil.write_bytes(payload)
    if hidden_as == "model.safetensors":
        digest = hashlib.sha256(payload).hexdigest()
        card = json.loads(card_before) | {"sha256": digest}
        (files / "model.json").write_text(json.dumps(card))
        client.set_model_version_tag("fmoe-digits", "1", "fmoe.sha256", digest)
    try:
        outcome = fmoe("pull", "models:/fmoe-digits/1", "--to", tmp_path / "model")
    finally:
        if before is None:
            evil.unlink()
        else:
            evil.write_bytes(before)
        (files / "model.json").write_bytes(card_before)
        sha = trained.answer["digest"]
        client.set_model_version_tag(version.name, version.version, "fmoe.sha256", sha)
    assert not mark.exists()
    if hidden_as == "model.safetensors":
        refused(outcome, "model.safetensors")
        assert not (tmp_path / "model").exists()
    else:  # beside the three files that are read, it is not even downloaded, nor is another's card
        assert outcome.code == 0
        assert {path.name for path in (tmp_path / "model").iterdir()} == {
            "model.safetensors", "config.yaml", "model.json", "README.md",
        }  # fmt: skip
        _, settings, card = model_folder.load_model(Folder.at(tmp_path / "model"))
        assert (tmp_path / "model" / "README.md").read_text() == model_card.render(card, settings)
