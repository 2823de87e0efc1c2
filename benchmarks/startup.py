"""How long a command takes before it does anything.

    python -m benchmarks.startup

`fmoe --help`, `import fmoe`, and the first step of `fmoe train digits` with its experts in the
store: from the command to the first joint step's end, in a process of its own each time. Medians
of five (of three for training). Result: benchmarks/results/startup.json.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from statistics import median

from benchmarks import measure

TINY = [
    *("--set", "data.train_images=128", "--set", "experts.train.epochs=1"),
    *("--set", "joint.epochs=1", "--set", "evaluate.images=1", "--set", "evaluate.attacks=[fgsm]"),
]


def seconds(*command: str, times: int) -> float:
    found = []
    for _ in range(times + 1):  # the first one fills the disk's cache
        begin = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        found.append(time.perf_counter() - begin)
    return round(median(found[1:]), 3)


def to_first_step(workers: int) -> float:
    """The driver's own count: from its process's start to the first epoch of few steps."""
    found = []
    with tempfile.TemporaryDirectory() as home:
        for number in range(4):
            command = [sys.executable, "-m", "pipelines.train", "digits", "--name", str(number)]
            command += ["--workers", str(workers), *TINY]
            begin = time.perf_counter()
            process = subprocess.Popen(
                command,
                env={**os.environ, "FMOE_HOME": home},
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
            )
            assert process.stderr is not None
            next(line for line in process.stderr if line.startswith("joint  epoch 1"))
            found.append(time.perf_counter() - begin)
            process.stderr.read()
            process.wait()
    return round(median(found[1:]), 1)  # the first one trains the experts


def main() -> None:
    program = [sys.executable, "-m", "pipelines.cli"]
    result = {
        "fmoe --help": seconds(*program, "--help", times=5),
        "import fmoe": seconds(sys.executable, "-c", "import fmoe", times=5),
        "python": seconds(sys.executable, "-c", "pass", times=5),
        "fmoe train, first epoch of two steps, 1 worker": to_first_step(1),
        "fmoe train, first epoch of two steps, 2 workers": to_first_step(2),
    }
    measure.write("startup", {"seconds": result})


if __name__ == "__main__":
    main()
