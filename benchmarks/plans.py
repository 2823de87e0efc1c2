"""The table of docs/guides/cost.md: the paper's CIFAR-10 run and the branched one on 1 to 64 GPUs.

    python -m benchmarks.plans

Planned, not run. Links: between GPUs of one machine (NVLink) and of eight machines.
"""

from __future__ import annotations

import re
from pathlib import Path

from fmoe import config
from fmoe.data.sets import named
from fmoe.planning.machines import GPUS, link
from fmoe.planning.plan import Counts, Plan, Planner, Setting

PAGE = Path(__file__).parent.parent / "docs/guides/cost.md"
RECIPES = ("cifar10", "cifar10-branched")
PLACES = ((1, "2400gbit"), (8, "2400gbit"), (8, "10gbit"), (64, "400gbit"), (64, "25gbit"))
"""How many GPUs, and the slowest link between two of them."""
GPU = "a100"
IMAGES = Counts(45_000, 5_000, 10_000)
GIB = 2**30


def planned(recipe: str, gpus: int, speed: str) -> Plan:
    setting = Setting(GPUS[GPU], gpus, link(speed))
    return Planner(config.load(recipe), named("cifar10").facts, IMAGES, setting).plan()


def row(recipe: str, gpus: int, speed: str, plan: Plan, alone: Plan) -> str:
    best, hours = plan.best, plan.hours
    share = 100 * alone.total / (gpus * plan.total)
    cells = [
        f"`{recipe}`",
        str(gpus),
        "" if gpus == 1 else speed,
        f"{hours['pool']:.2f}",
        f"{hours['joint']:.2f}",
        f"{plan.total:.2f}",
        f"{best.data} x {best.expert}",
        f"{best.memory_bytes / GIB:.2f}",
        f"{best.bytes_per_step / 1e6:.0f}",
        f"{100 * best.exchange / best.seconds:.0f}%",
        f"{share:.0f}%",
    ]
    return f"| {' | '.join(cells)} |"


def table() -> str:
    head = (
        *("recipe", "GPUs", "link", "pool, h", "joint, h", "in all, h", "data x expert"),
        *("memory, GiB", "sent a step, MB", "exchange", "of N times one GPU's speed"),
    )
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for recipe in RECIPES:
        alone: Plan | None = None
        for gpus, speed in PLACES:
            plan = planned(recipe, gpus, speed)
            alone = alone or plan
            lines.append(row(recipe, gpus, speed, plan, alone))
            print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    text = PAGE.read_text()
    begin, end = "<!-- plans: begin -->", "<!-- plans: end -->"
    pattern = re.compile(f"{begin}.*{end}", re.DOTALL)
    PAGE.write_text(pattern.sub(f"{begin}\n{table()}\n{end}", text))


if __name__ == "__main__":
    main()
