r"""What this library does on a GPU, in so many minutes: what is worth most comes first.

    python -m benchmarks.gpu --minutes 9 --data-dir DATA
    python -m benchmarks.gpu --minutes 2 --tiny           # on any machine: to try the script

Needs torch, safetensors, pyarrow, pydantic and pyautoattack; without Ray and MLflow the parts that
need them are skipped by name, and so are those of CIFAR-10 without --data-dir. Each part is a
process of its own, with a limit; what it finds is written when it is known, to
benchmarks/results/gpu-cuda.json (those of other benchmarks to their own files). Not run here: this
project's machine has no GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks import measure, on_gpu

START = 20.0  # seconds that a process takes before it does anything, at most


@dataclass(frozen=True)
class Part:
    """share: of the time that is left when it begins. needs: packages. data: CIFAR-10."""

    share: float
    needs: tuple[str, ...] = ()
    data: bool = False
    module: str | None = None
    arguments: tuple[str, ...] = ()


PARTS = {
    "correctness": Part(0.4),
    "speed": Part(0.3),
    "speedrun": Part(0.4, ("pyautoattack",), True, "speedrun", ("--autoattack", "500")),
    "branched": Part(0.5, data=True),
    "whole": Part(1.0, data=True),
    "crafting": Part(1.0, module="crafting"),
    "ray_overhead": Part(1.0, ("ray", "mlflow"), True, "ray_overhead"),
}
"""In order of what is worth most."""


def own(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """What a part of ours finds, in this process."""
    device = measure.device()
    if name in on_gpu.BODIES:
        how = {"seconds": given.seconds, "tiny": given.tiny}
        return on_gpu.trained(name, given.data_dir, device, **how)
    parts: dict[str, Callable[..., dict[str, Any]]] = {
        "correctness": on_gpu.correctness,
        "speed": on_gpu.speed,
    }
    return parts[name](device, tiny=given.tiny)


def why_not(part: Part, given: argparse.Namespace) -> str | None:
    missing = [name for name in part.needs if find_spec(name) is None]
    if missing:
        return f"skipped: needs {', '.join(missing)}"
    if part.data and not given.data_dir:
        return "skipped: needs --data-dir with CIFAR-10"
    return None


def run(name: str, part: Part, seconds: float, given: argparse.Namespace) -> dict[str, Any]:
    """A part in a process of its own."""
    data = ["--data-dir", given.data_dir] if given.data_dir else []
    if part.module:
        command = [f"benchmarks.{part.module}", *part.arguments, *(data if part.data else [])]
    else:
        tiny = ["--tiny"] if given.tiny else []
        command = [
            "benchmarks.gpu",
            "--part",
            name,
            "--seconds",
            str(seconds - START),
            *data,
            *tiny,
        ]
    begin = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return {"status": f"ended after its {seconds:.0f} s"}
    took = {"seconds": round(time.perf_counter() - begin, 1)}
    if done.returncode:
        return {"status": f"failed: {done.stdout.strip().splitlines()[-1:]}", **took}
    if part.module:
        return {"status": f"done: see {part.module}", **took}
    return {"status": "done", **took, **json.loads(done.stdout.strip().splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--data-dir")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--tiny", action="store_true", help="Small networks, on any device.")
    parser.add_argument("--part", help="Our own.")
    parser.add_argument("--seconds", type=float, help="Our own.")
    given = parser.parse_args()
    if given.part:
        print(json.dumps(own(given.part, given)))
        return
    if not torch.cuda.is_available() and not given.tiny:
        raise SystemExit("torch sees no GPU here (--tiny tries the script on any machine)")
    end, found = time.monotonic() + 60 * given.minutes, dict[str, Any]()
    for name in given.parts.split(","):
        part, left = PARTS[name], end - time.monotonic()
        reason = why_not(part, given)
        if reason is None and left < 2 * START:
            reason = "skipped: no time left"
        print(f"== {name}{': ' + reason if reason else ''}", file=sys.stderr, flush=True)
        found[name] = {"status": reason} if reason else run(name, part, part.share * left, given)
        measure.write("gpu", {"minutes": given.minutes, "tiny": given.tiny, "parts": found})


if __name__ == "__main__":
    main()
