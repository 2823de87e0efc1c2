"""Registered versions as MLflow serves them: whole and branched mixtures, batches of any size."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

import fmoe
from fmoe import assembly, config, model_folder, tracking
from fmoe.data import Data
from fmoe.storage.folder import Folder
from fmoe.tracking import Tracker
from tests.conftest import SMALL

START_SECONDS = 240.0


@pytest.fixture(params=["digits-whole", "digits"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a version of an untrained model, whole networks or branches."""
    settings = config.load(request.param, SMALL)
    network, folder = assembly.seeded_mixture(settings).eval(), tmp_path / "model"
    digest = model_folder.save_model(
        Folder.at(folder), network.state_dict(), settings, data_digest="abc", metrics={}
    )
    tracker = Tracker.start("served", {}, {}, None)
    tags = {"fmoe.sha256": digest}
    version = tracker.register(network, folder, request.param, (1, 8, 8), tags)
    tracker.finish("FINISHED")
    mlflow.set_tracking_uri(tracking.store_uri())
    return f"models:/{request.param}/{version}"


def as_the_model(rows: list[dict[str, Any]], uri: str, x: torch.Tensor, data: Data) -> None:
    model: Any = fmoe.load(uri)
    with torch.no_grad():
        log_probs, weights = model(x).numpy(), model.gate_weights(x).numpy()
    np.testing.assert_allclose([row["log_probabilities"] for row in rows], log_probs, atol=1e-4)
    for row, answer, of_gate in zip(rows, log_probs, weights, strict=True):
        assert row["label"] == data.facts.classes[answer.argmax()]
        assert row["probability"] == pytest.approx(float(np.exp(answer.max())), abs=1e-4)
        assert list(row["gate_weights"]) == ["benign-0", "fgsm-0", "pgd-0"]
        np.testing.assert_allclose(list(row["gate_weights"].values()), of_gate, atol=1e-4)


@pytest.mark.parametrize("count", [1, 5, 300])
def test_both_flavors_answer_as_the_model_does(count: int, uri: str, digits: Data) -> None:
    """In one process; the program alone, which needs no fmoe, gives log-probabilities."""
    x = digits.test.pixels()[:count].contiguous()
    rows = mlflow.pyfunc.load_model(uri).predict(x.numpy()).to_dict("records")
    as_the_model(rows, uri, x, digits)
    program = mlflow.pytorch.load_model(uri)
    with torch.no_grad():
        torch.testing.assert_close(program(x), fmoe.load(uri)(x), atol=1e-5, rtol=0)


def test_what_are_no_pixels_is_refused(uri: str, digits: Data) -> None:
    served = mlflow.pyfunc.load_model(uri)
    with pytest.raises(MlflowException, match=r"from 0 to 255: expected floats of \[0,1\]"):
        served.predict(digits.test.images[:2].numpy().astype(np.float32))
    with pytest.raises(MlflowException, match="shape"):
        served.predict(np.zeros((2, 3, 8, 8), np.float32))


@pytest.mark.parametrize("uri", ["digits"], indirect=True)
def test_a_batch_through_mlflows_server(uri: str, digits: Data) -> None:
    """`mlflow models serve`, as the page on serving has it."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port = asked.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", uri]
    process = subprocess.Popen(
        [*command, "--env-manager", "local", "--port", str(port)],
        env={
            **os.environ,
            "MLFLOW_TRACKING_URI": tracking.store_uri(),
            # MLflow starts uvicorn by its name, as in an environment that is active
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    x = digits.test.pixels()[:3]
    try:
        code, told = posted(process, port, x.tolist())
        assert code == 200, told
        as_the_model(told["predictions"], uri, x, digits)
        code, told = posted(process, port, (255 * x).tolist())
        assert code == 400
        assert "expected floats of [0,1]" in told["message"]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def posted(process: subprocess.Popen[str], port: int, inputs: Any) -> tuple[int, Any]:
    """The answer to a request, as soon as there is one."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        json.dumps({"inputs": inputs}).encode(),
        {"Content-Type": "application/json"},
    )
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except OSError:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "it does not answer"
            time.sleep(0.5)


def test_nothing_of_a_version_is_a_pickle(uri: str, tmp_path: Path) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path)))
    assert {"MLmodel", "extra_files", "data"} <= {path.name for path in folder.iterdir()}
    assert not [p for p in folder.rglob("*") if p.suffix in {".pkl", ".pickle", ".pth"}]
    name, _, number = uri.removeprefix("models:/").rpartition("/")
    version = MlflowClient(tracking.store_uri()).get_model_version(name, number)
    assert version.aliases == ["candidate"]
