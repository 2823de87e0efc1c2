"""The mixture against its baselines at equal compute: trained, judged and compared by the commands.

    python -m benchmarks.baselines --data-dir DATA --work FOLDER --images 1000

Every recipe is trained from nothing, in a store of its own, so that each pays for its experts; then
all are judged on the same test images by `fmoe compare`. What is in FOLDER is not done again. Takes
hours on two cores, nothing may run beside it. Result: benchmarks/results/baselines.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import measure

ROOT = Path(__file__).parent.parent
RECIPES = {
    "cifar10-small-pgd": "one width-16 network, PGD",
    "cifar10-small": "nine width-8 experts, gate, joint (DWF)",
    "cifar10-small-uniform": "the nine without a gate",
    "cifar10-small-frozen": "the nine frozen, gate and last layers trained (MoRE)",
    "cifar10-small-top1": "hard gate (ADVMoE)",
    "cifar10-small-wide": "one width-24 network, PGD",
    "cifar10-small-clean": "one width-16 network, clean",
}
ATTACKS = "fgsm,pgd,pgd50,mixture"


def command(home: Path, program: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", program, *arguments, "--json"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "FMOE_HOME": str(home)},
    )
    if done.returncode:
        raise SystemExit(f"fmoe {program} {' '.join(arguments)} failed")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def trained(work: Path, recipe: str, options: list[str]) -> dict[str, Any]:
    """The answer of `fmoe train`, and its whole wall time."""
    file = work / recipe / "trained.json"
    if not file.exists():
        begin = time.perf_counter()
        answer = command(work / recipe, "train", recipe, *options)
        answer["wall_seconds"] = time.perf_counter() - begin
        file.write_text(json.dumps(answer, indent=1))
    return dict(json.loads(file.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", default="1000")
    parser.add_argument("--workers", default="2")
    parser.add_argument("--attacks", default=ATTACKS)
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="PATH=VALUE")
    given = parser.parse_args()
    work, data = given.work.resolve(), ["--data-dir", str(Path(given.data_dir).resolve())]
    for recipe in RECIPES:
        (work / recipe).mkdir(parents=True, exist_ok=True)
    sets = [part for one in ("evaluate.images=100", *given.sets) for part in ("--set", one)]
    training = ["--workers", given.workers, *sets, *data]
    runs = {recipe: trained(work, recipe, training) for recipe in RECIPES}
    folders = [run["run_dir"] for run in runs.values()]
    options = ["--limit", given.images, "--attacks", given.attacks, "--workers", given.workers]
    options += ["--fast", "--report", str(work / "page"), *data]
    found = command(work, "compare", *folders, *options)
    rows = {
        recipe: {
            "what": RECIPES[recipe],
            "minutes": round(runs[recipe]["wall_seconds"] / 60, 1),
            "figures": model["figures"],
            "flags": model["flags"],
        }
        for recipe, model in zip(RECIPES, found["models"], strict=True)
    }
    result = {
        "images": given.images,
        "attacks": given.attacks,
        "set": given.sets,
        "models": rows,
    }
    differences = [{**row, "model": measure.named(row["model"])} for row in found["differences"]]
    measure.write("baselines", result | {"differences": differences})


if __name__ == "__main__":
    main()
