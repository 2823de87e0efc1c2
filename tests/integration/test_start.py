"""Ray on this machine: where it starts all the same, and what is said where it does not.

Each in a process of its own. What fails is real: Ray's own programs, replaced in a mount namespace
that only that process sees.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from PIL import Image

from fmoe.cpus import usable_cpus
from fmoe.on_ray import local
from tests.conftest import SMALL

LIMIT = 30.0  # what users are promised
ROOT = Path(__file__).parent.parent.parent
PROGRAMS = Path(ray.__file__).parent / "core/src/ray"
TRAIN = [sys.executable, "-m", "pipelines.cli", "train", "digits"]
TINY = [
    *SMALL,
    "joint.epochs=1",
    "data.train_images=320",
    "experts.train.batch_size=32",
    "joint.batch_size=32",
    "evaluate.images=16",
    "evaluate.attacks=[fgsm]",
]
SESSION = """
import json, os, ray, torch
from fmoe.on_ray.session import Resources, session
with session(1, data_bytes=int(os.environ.get("BYTES", "0"))):
    resources = Resources.per_worker(1, False)
    @ray.remote(num_cpus=0)
    def threads():
        resources.device()
        return torch.get_num_threads()
    print(json.dumps({"cpus": ray.cluster_resources()["CPU"], "threads": ray.get(threads.remote()),
        "folder": ray._private.worker._global_node.get_session_dir_path()}))
"""


def environment(**env: str) -> dict[str, str]:
    """Without what a Ray of this process has set for its own, such as how long it may take."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**clean, "RAY_worker_niceness": "0", "PYTHONPATH": str(ROOT), **env}


def unshared(*replaced: tuple[Path, Path], before: str = "") -> list[str]:
    """Starts a command with other files in the place of some, seen by it alone."""
    mounts = "".join(f"mount --bind {new} {old}; " for old, new in replaced)
    return ["unshare", "--mount", "sh", "-ec", f'{mounts}{before}exec "$@"', "sh"]


def namespaces() -> bool:
    command = ["unshare", "--mount", "true"]
    return os.geteuid() == 0 and subprocess.run(command, check=False).returncode == 0


root_only = pytest.mark.skipif(not namespaces(), reason="needs root: a mount namespace")


def program(folder: Path, text: str) -> Path:
    file = folder / "program"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


DIES = """for given; do case $given in
--stderr_filepath=*) echo it is broken >>"${given#*=}" ;;
esac; done; exit 1"""  # Ray's programs are told where to say what is wrong
HANGS = "exec sleep 100"


@pytest.mark.parametrize(("load", "times"), [(0.3, 1), (2, 2), (100, 4)])
def test_a_busy_machine_is_given_longer(
    load: float, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load * usable_cpus(), 0, 0))
    assert local.queue() == times


@root_only
@pytest.mark.parametrize(
    ("name", "text", "patience", "said"),
    [
        (
            "raylet/raylet",
            HANGS,
            "6",
            "within 6 seconds: its logs are in",
        ),
        ("raylet/raylet", DIES, "3", "raylet.err ends with: it is broken"),
        ("gcs/gcs_server", HANGS, "3", "FMOE_RAY_SECONDS=9"),
        ("gcs/gcs_server", DIES, "3", "gcs_server.err ends with: it is broken"),
    ],
    ids=["raylet hangs", "raylet dies", "gcs hangs", "gcs dies"],
)
def test_a_part_of_ray_that_does_not_start(
    name: str, text: str, patience: str, said: str, tmp_path: Path
) -> None:
    command = unshared((PROGRAMS / name, program(tmp_path, text)))
    begin = time.monotonic()
    done = subprocess.run(
        [*command, *TRAIN, "--json"], env=environment(FMOE_RAY_SECONDS=patience),
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    took = time.monotonic() - begin
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("fmoe: Ray does not start on this machine")
    assert said in line
    assert took < LIMIT


@root_only
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_while_ray_starts(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """Heard within seconds, and nothing that was started stays."""
    command = unshared((PROGRAMS / "raylet/raylet", program(tmp_path, HANGS)))
    process = subprocess.Popen([*command, *TRAIN], env=environment(), stderr=subprocess.PIPE)
    started: list[psutil.Process] = []
    deadline = time.monotonic() + LIMIT
    while not any(child.name() == "sleep" for child in started):
        assert time.monotonic() < deadline
        time.sleep(0.2)
        started = psutil.Process(process.pid).children(recursive=True)
    time.sleep(1)
    begin = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert time.monotonic() - begin < 10
    assert b"Traceback" not in err
    _, alive = psutil.wait_procs(started, timeout=5)
    assert alive == []


def session(*before: str, **env: str) -> dict[str, Any]:
    done = subprocess.run(
        [*before, sys.executable, "-c", SESSION], env=environment(**env),
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_long_temporary_folder_and_one_cpu(tmp_path: Path) -> None:
    """Sockets' paths hold 107 letters; a mask of one CPU is what Ray and its workers count."""
    long = tmp_path / ("long" * 30)
    long.mkdir()
    found = session("taskset", "--cpu-list", str(min(os.sched_getaffinity(0))), TMPDIR=str(long))
    assert (found["cpus"], found["threads"]) == (1, 1)
    assert found["folder"].startswith("/tmp/fmoe-ray-")
    assert not Path(found["folder"]).parent.exists(), "tidied"


@root_only
def test_little_shared_memory() -> None:
    """A container's /dev/shm has 64 MB by default: Ray goes on with files."""
    small = unshared(before="mount -t tmpfs -o size=8M none /dev/shm; ")
    assert session(*small)["cpus"] >= 1


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"RAY_TMPDIR": "/proc/nonesuch"}, "RAY_TMPDIR=/proc/nonesuch: Ray cannot write there"),
        ({"RAY_TMPDIR": "/etc/hostname"}, "RAY_TMPDIR=/etc/hostname: Ray cannot write there"),
        ({"FMOE_RAY_SECONDS": "soon"}, "FMOE_RAY_SECONDS=soon: expected a number of seconds"),
        ({"FMOE_RAY_SECONDS": "nan"}, "FMOE_RAY_SECONDS=nan: expected a number of seconds"),
        ({"BYTES": str(10**15)}, "Ray does not start on this machine ("),
    ],
)
def test_refused_before_ray_starts(env: dict[str, str], said: str) -> None:
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", SESSION], env=environment(**env),
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert f"fmoe.errors.UserError: {said}" in done.stderr.splitlines()[-1]
    assert time.monotonic() - begin < LIMIT


def nobody(home: Path, *arguments: str, **env: str) -> str:
    """The stdout of a command of a user that the password file does not know.

    What is root's can be read, so that Python is found there, and not be written.
    """
    reads = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    unset = [f"--unset={name}" for name in {"USER", "LOGNAME", "HOME"} - env.keys()]
    done = subprocess.run(
        ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", *reads,
         "env", *unset, *TRAIN[:3], *arguments],
        env=environment(FMOE_HOME=str(home), **env), cwd=home,
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to become another user")
def test_a_user_without_name_or_home() -> None:
    """`docker run -u 12345`: a run where HOME is Docker's /, its model on a picture without."""
    with tempfile.TemporaryDirectory(prefix="fmoe-nobody-") as folder:
        home = Path(folder)
        home.chmod(0o777)
        Image.new("L", (8, 8), 100).save(home / "picture.png")
        overrides = [f"--set={override}" for override in TINY]
        answer = json.loads(nobody(home, "train", "digits-whole", "--json", *overrides, HOME="/"))
        token = home / ".ray" / "auth_token"
        assert (token.stat().st_uid, token.stat().st_mode & 0o777) == (12345, 0o600)
        given = ["predict", answer["run_dir"], str(home / "picture.png"), "--json"]
        (found,) = json.loads(nobody(home, *given))["predictions"]
        assert found["label"]
