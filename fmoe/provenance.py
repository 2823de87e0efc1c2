"""What a figure needs to be reproduced: the code's revision and the environment."""

from __future__ import annotations

import getpass
import hashlib
import os
import platform
import socket
import subprocess
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from fmoe.cpus import usable_cpus

OF_THE_BUILD = ("nvidia-", "cuda-", "triton")


def git_revision() -> str:
    """The checkout's commit. Where files differ from it, `COMMIT-dirty-` and a digest of the
    library's source; outside of a checkout of ours, `unknown-` and that.

    In a submitted job it is the submitter's.
    """
    if os.environ.get("FMOE_GIT_REVISION"):
        return os.environ["FMOE_GIT_REVISION"]
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "version.py")  # or the repository is somebody else's
        revision = git("rev-parse", "HEAD")
        return f"{revision}-dirty-{source()}" if git("status", "--porcelain") else revision
    except (OSError, subprocess.CalledProcessError):
        return f"unknown-{source()}"


def user() -> str:
    """The name, or the number of one that has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def source() -> str:
    """A short digest of the library's code as it is."""
    sha, folder = hashlib.sha256(), Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        sha.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return sha.hexdigest()[:12]


def hardware() -> dict[str, str]:
    import torch  # here: `fmoe jobs` asks for pins, and torch's import takes seconds

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": str(usable_cpus()),
        "cpus_installed": str(os.cpu_count()),
        "gpus": ", ".join(gpus) or "none",
        "torch": torch.__version__,
    }


def packages() -> str:
    """What is installed, a pin a line."""
    pins = {f"{d.name}=={d.version}" for d in distributions() if d.name}
    return "\n".join(sorted(pins, key=str.lower)) + "\n"


def pins() -> dict[str, str]:
    """The installed version of all that fmoe requires, without local parts (`+cpu`) and without
    what comes with a build of torch."""
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    wanted = [("fmoe", "")]  # (package, extra)
    while wanted:
        name, extra = wanted.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue  # asked for by a marker that pip saw otherwise
        if name.startswith(OF_THE_BUILD):
            continue
        versions[name] = Version(package.version).public
        for line in package.requires or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                wanted += [(canonicalize_name(needed.name), e) for e in {"", *needed.extras}]
    del versions["fmoe"]
    return dict(sorted(versions.items()))


def driver() -> str:
    """This process, told apart from a later one of the same number: host, pid, start time."""
    process = psutil.Process()
    return f"{socket.gethostname()}:{process.pid}:{process.create_time():.0f}"


def is_gone(driver: str) -> bool | None:
    """Whether the process of `driver` has ended; None where it is another host's."""
    host, pid, started = driver.rsplit(":", 2)
    if host != socket.gethostname():
        return None
    try:
        now_there: float = psutil.Process(int(pid)).create_time()
        return abs(now_there - float(started)) > 2
    except psutil.NoSuchProcess:
        return True
