"""What a submitted job starts: `fmoe` on a node that holds the submitter's versions."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PINS = Path("pins.txt")  # see fmoe.on_ray.jobs.stage


def differing(pins: str) -> list[str]:
    """What this Python has otherwise than the pins say, but for local parts such as `+cu128`."""
    differing = []
    for line in pins.splitlines():
        name, _, wanted = line.partition("==")
        try:
            here = version(name).partition("+")[0]
        except PackageNotFoundError:
            here = "missing"
        if here != wanted:
            differing.append(f"{name} {here} (submitted with {wanted})")
    return differing


def main() -> None:
    wrong = differing(PINS.read_text())
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        print(
            f"fmoe: {sys.executable} on this node has {', '.join(wrong[:5])}{more}: start Ray in "
            "an environment made from the same constraints.txt, or submit with --pip",
            file=sys.stderr,
        )
        sys.exit(2)
    from pipelines.cli import main as fmoe

    fmoe()


if __name__ == "__main__":
    main()
