"""What a figure needs to be reproduced: the code's revision and the environment."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import distributions
from pathlib import Path

import torch


def git_revision() -> str:
    """The checkout's commit, `-dirty` where files differ from it; `unknown` outside of one."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        revision = git("rev-parse", "HEAD")
        return f"{revision}-dirty" if git("status", "--porcelain") else revision
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def hardware() -> dict[str, str]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": str(os.cpu_count()),
        "gpus": ", ".join(gpus) or "none",
        "torch": torch.__version__,
    }


def packages() -> str:
    """What is installed, a pin a line."""
    pins = {f"{d.name}=={d.version}" for d in distributions() if d.name}
    return "\n".join(sorted(pins, key=str.lower)) + "\n"
