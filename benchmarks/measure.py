"""What the benchmarks share: interleaved timing, and results with machine and versions."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fmoe import provenance

RESULTS = Path(__file__).parent / "results"
PEERS = ("torchattacks", "foolbox", "adversarial-robustness-toolbox", "pyautoattack", "ray")


def interleaved(arms: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Median seconds of each arm; a round runs all of them, so that a slow minute slows all. The
    first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name, run in arms.items():
            wait()
            begin = time.perf_counter()
            run()
            wait()
            if number:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def wait() -> None:
    """For the GPU, which runs behind the host."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def installed() -> dict[str, str]:
    found = {}
    for name in PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def write(name: str, result: Mapping[str, Any]) -> None:
    """benchmarks/results/NAME.json (NAME-cuda.json on a GPU), and the same on the screen."""
    machine = {**provenance.hardware(), **installed(), "threads": str(torch.get_num_threads())}
    text = json.dumps({"date": str(date.today()), "machine": machine, **result}, indent=1)
    RESULTS.mkdir(exist_ok=True)
    path(name, "json").write_text(text + "\n")
    print(text)


def named(model: str) -> str:
    """A model's name without the folders of this machine that lead to it."""
    return Path(model).name


def path(name: str, ending: str) -> Path:
    """benchmarks/results/NAME.ENDING, or NAME-cuda.ENDING on a GPU."""
    return RESULTS / f"{name}{'-cuda' if device().type == 'cuda' else ''}.{ending}"
