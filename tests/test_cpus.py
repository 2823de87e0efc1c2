"""CPUs that may be used are counted, not those that are installed."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest

from fmoe import cpus
from fmoe.cpus import usable_cpus

COUNT = [sys.executable, "-c", "from fmoe.cpus import usable_cpus; print(usable_cpus())"]
V1 = Path("/sys/fs/cgroup/cpu")


def counted(before: Callable[[], object]) -> int:
    """What a process of its own counts. before: runs in it first, and narrows what it may use."""
    done = subprocess.run(COUNT, capture_output=True, text=True, preexec_fn=before, check=True)
    return int(done.stdout)


def test_a_mask() -> None:
    mine = sorted(os.sched_getaffinity(0))
    assert counted(lambda: os.sched_setaffinity(0, mine[:1])) == 1


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of this machine, with another one in it."""
    outer = V1 / f"fmoe-{secrets.token_hex(4)}"
    try:
        (outer / "inner").mkdir(parents=True)
    except OSError as error:
        pytest.skip(f"control groups cannot be made here ({error.strerror})")
    yield outer
    (outer / "inner").rmdir()
    outer.rmdir()


@pytest.mark.skipif(usable_cpus() < 2, reason="one CPU cannot be narrowed")
@pytest.mark.parametrize("limited", ["inner", "."])
def test_a_quota_of_the_kernels_own(group: Path, limited: str) -> None:
    """The process is in `inner`; the limit is that group's, or that of the one above it."""
    (group / limited / "cpu.cfs_quota_us").write_text("150000")
    (group / limited / "cpu.cfs_period_us").write_text("100000")
    join = group / "inner" / "cgroup.procs"
    assert counted(lambda: join.write_text(str(os.getpid()))) == 1


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        # docker run --cpus 3 with a namespace of its own: the mount is the container's group
        ([("", "/")], {"cpu.max": "300000 100000"}, [3.0]),
        ([("", "/")], {"cpu.max": "max 100000"}, []),
        # Kubernetes: the pod's limit is above the container's
        (
            [("", "/pod/one")],
            {"pod/cpu.max": "50000 100000", "pod/one/cpu.max": "max 100000"},
            [0.5],
        ),
        # version 1, seen from inside: the path is the host's and is not there
        (
            [("memory", "/"), ("cpu,cpuacct", "/docker/1a2b")],
            {
                "cpu,cpuacct/cpu.cfs_quota_us": "250000\n",
                "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            [2.5],
        ),
        ([("cpu", "/")], {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, []),
        # another controller's folder says nothing
        (
            [("cpuset", "/")],
            {"cpuset/cpu.cfs_quota_us": "1", "cpuset/cpu.cfs_period_us": "1"},
            [],
        ),
        # both versions at once, as systemd's hybrid mode mounts them
        (
            [("cpu", "/a"), ("", "/a")],
            {
                "cpu/a/cpu.cfs_quota_us": "400000",
                "cpu/a/cpu.cfs_period_us": "100000",
                "unified/a/cpu.max": "200000 100000",
            },
            [4.0, 2.0],
        ),
    ],
)
def test_layouts_of_control_groups(
    groups: list[tuple[str, str]], files: dict[str, str], expected: list[float], tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    own = [(controllers, PurePosixPath(path)) for controllers, path in groups]
    assert list(cpus._quotas(tmp_path, own)) == expected
