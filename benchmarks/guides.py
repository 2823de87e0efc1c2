"""README.md and the site's guides as a new user follows them: how long each step takes.

    python -m benchmarks.guides

The wheel is built and installed, with the pinned versions, into a new environment in an empty
folder outside of the checkout; then the pages' blocks are typed one after another, each in a
process of its own. Stops at the first that does not do what its page says. Result:
benchmarks/results/guides.json.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import measure
from tests import built, pages
from tests.pages import Block, Command

EXTRAS = "hub,onnx,timm"
"""What the guides have one install besides."""
OURS = ("FMOE_", "MLFLOW_", "PYTHON", "RAY_", "VIRTUAL_ENV")
"""Variables that a new user does not have."""


@dataclass
class User:
    """Types in `place`; what was typed stands in `steps` with its seconds."""

    place: Path
    steps: list[dict[str, object]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        path = f"{self.place.parent / 'venv' / 'bin'}:/usr/local/bin:/usr/bin:/bin"
        return {**kept, "PATH": path, "FMOE_HOME": str(self.place.parent / "home")}

    def type(self, where: str, told: str, command: list[str]) -> str:
        """What was printed. Raises `AssertionError` for a command that fails."""
        begin = time.perf_counter()
        done = subprocess.run(
            command,
            cwd=self.place,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = round(time.perf_counter() - begin, 1)
        self.steps.append({"where": where, "typed": told, "seconds": seconds})
        print(f"{seconds:7.1f} s  {where}  {told}", file=sys.stderr, flush=True)
        assert done.returncode == 0, f"{where}: {told}\n{done.stderr[-3000:]}"
        return done.stdout

    def console(self, command: Command) -> None:
        told = " ".join(command.line.replace("\\\n", "").split())
        printed = self.type(command.where, told, ["bash", "-c", command.line])
        missing = command.missing(printed)
        assert missing is None, f"{command.where}: no line {missing!r} in\n{printed}"

    def python(self, block: Block) -> None:
        self.type(block.where, "(Python)", ["python", "-c", block.text])


def follow(folder: Path) -> dict[str, object]:
    place = folder / "work"
    place.mkdir()
    user = User(place)
    wheel = built.wheel(built.copied(folder / "source", built.BUILT_FROM))
    venv.create(folder / "venv", with_pip=True)
    install = ["python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    install += ["-c", str(pages.ROOT / "constraints.txt"), f"{wheel}[{EXTRAS}]"]
    user.type("pip", f"pip install -c constraints.txt 'fmoe[{EXTRAS}]'", install)
    for page in pages.in_order():
        pages.play(page, place, user)
    by_page: dict[str, float] = {}
    for step in user.steps:
        page_name = str(step["where"]).split(":")[0]
        by_page[page_name] = round(by_page.get(page_name, 0) + float(str(step["seconds"])), 1)
    return {"seconds": round(sum(by_page.values()), 1), "by_page": by_page, "steps": user.steps}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        result = follow(Path(folder))
    measure.write("guides", result)


if __name__ == "__main__":
    main()
