"""A real cluster that this command may not use, or whose node here hangs: told in seconds."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

LIMIT = 30.0  # what users are promised
ROOT = Path(__file__).parent.parent.parent
SESSION = """
import ray
from fmoe.on_ray.session import session
with session(1):
    print(ray.cluster_resources()["CPU"])
"""


@dataclass(frozen=True)
class Head:
    folder: str  # where the last one started is written, for RAY_ADDRESS=auto
    address: str
    token: str
    process: psutil.Process

    def find(self, name: str) -> psutil.Process | None:
        found = [p for p in self.process.children(recursive=True) if p.name() == name]
        return found[0] if found else None

    def run(self, *command: str, **env: str) -> tuple[subprocess.CompletedProcess[str], float]:
        """A command that uses the cluster, as its owner or otherwise; and its seconds."""
        mine = {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        begin = time.monotonic()
        done = subprocess.run(
            [sys.executable, *command],
            env={**os.environ, "PYTHONPATH": str(ROOT), **mine, **env},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        return done, time.monotonic() - begin


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """`ray start --head` with a token, as a child of this process."""
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        port = probe.getsockname()[1]
    folder, token = tempfile.mkdtemp(prefix="fmoe-head-", dir="/tmp"), "a1b2" * 16
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}",
         "--num-cpus=1", "--include-dashboard=false", f"--temp-dir={folder}/ray",
         "--object-store-memory=100000000", "--disable-usage-stats"],
        env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if "Ray runtime started" in line:
            break
    assert process.poll() is None, said
    running = psutil.Process(process.pid)
    yield Head(folder, f"127.0.0.1:{port}", token, running)
    everything = [*running.children(recursive=True), running]
    process.terminate()
    _, alive = psutil.wait_procs(everything, timeout=20)
    for left in alive:
        left.kill()
    process.wait()
    process.stdout.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("named", ["its address", "auto"])
def test_a_session_uses_it(ray_session: None, head: Head, named: str) -> None:
    """Of two that run here, too, where `auto` is the last that `ray start` has begun."""
    auto = {"RAY_ADDRESS": "auto", "RAY_TMPDIR": head.folder}
    done, _ = head.run("-c", SESSION, **(auto if named == "auto" else {}))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "1.0"


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    "env",
    [
        {"RAY_AUTH_TOKEN": "b" * 64},
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_TOKEN": "", "HOME": "/nonesuch"},
    ],
    ids=["another token", "no authentication", "no token"],
)
def test_without_its_token(head: Head, env: dict[str, str], as_json: bool) -> None:
    flags = ["--json"] if as_json else []
    done, took = head.run("-m", "pipelines.cli", "train", "digits-whole", *flags, **env)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"fmoe: RAY_ADDRESS={head.address} (")
    assert "the cluster asks for another token: set RAY_AUTH_MODE=token" in line
    assert took < LIMIT


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raylet", "hangs: start one (`ray start --address="),
        ("gcs_server", "no Ray cluster can be reached (no answer in 8 seconds)"),
    ],
)
def test_a_part_of_it_that_hangs(head: Head, name: str, said: str) -> None:
    part = head.find(name)
    assert part is not None
    part.suspend()
    try:
        done, took = head.run("-m", "pipelines.cli", "train", "digits")
    finally:
        part.resume()
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert said in line
    assert took < LIMIT
