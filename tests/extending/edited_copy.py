"""A copy of the code in which every section of docs/extending.md has been followed."""

from __future__ import annotations

import ast
import compileall
import re
import shutil
from pathlib import Path

from tests.extending.document import BLOCK, PAGE, sections

ROOT = PAGE.parent.parent
PACKAGES = ("fmoe", "pipelines", "tune_spaces")
EDITS = {
    "A gate": ("fmoe/models/gates.py", "| Top1, ", "| Top1 | Colours, "),
    "A loss": ("fmoe/losses.py", "| Mart, ", "| Mart | Focal, "),
    "An attack to train against": ("fmoe/attacks/kinds.py", "| Mix, ", "| Mix | Walk, "),
    "An optimizer": ("fmoe/optim.py", "[SGD | Muon, ", "[SGD | Muon | AdamW, "),
    "A schedule": ("fmoe/optim.py", "| Constant, ", "| Constant | Linear, "),
    "What follows a step": ("fmoe/after_step.py", "Config = Ema", "Config = Ema | Swa"),
    "A backbone": (
        "fmoe/models/backbones.py",
        "| Timm,",
        "| Timm | Plain,",
    ),
    "A data set": ("fmoe/data/sets.py", "    Digits(),", "    Tiles(),\n    Digits(),"),
    "A norm": (
        "fmoe/attacks/threat.py",
        "ThreatConfig = Linf | L2",
        "ThreatConfig = Linf | L2 | L1",
    ),
    "A scheduler of studies": ("fmoe/tuning/schedulers.py", "| PBT, ", "| PBT | Median, "),
    "A searcher of studies": ("fmoe/tuning/searchers.py", "| Grid, ", "| Grid | Sobol, "),
    "A metric": ("fmoe/training/metrics.py", "] = {", '] = {"val_sureness": sureness, '),
    "An attack of the evaluation": (
        "fmoe/evaluation/stages.py",
        "    in_suite(",
        '    Attack("corner", corner),\n    in_suite(',
    ),
    "A command": ("pipelines/cli.py", "    **as_jobs", '    "count": count,\n    **as_jobs'),
}
"""Section to the file that it names, and the name in that file's union or list: before, after."""


def edited_copy(folder: Path) -> Path:
    """The folder that PYTHONPATH must name."""
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for heading, (file, before, after) in EDITS.items():
        _, section = sections(PAGE.read_text())[heading]
        assert f"`{file}`" in section, (heading, file)
        (code,) = (block[1] for block in BLOCK.finditer(section))
        path = folder / file
        edited = inserted(path.read_text(), before, after, without_own(code, file))
        path.write_text(edited)
    for package in PACKAGES:  # or each of a dozen processes would
        compileall.compile_dir(folder / package, quiet=2)
    return folder


def inserted(text: str, before: str, after: str, code: str) -> str:
    """The code in front of the statement that lists the kinds; its name in that list."""
    line = text[: text.index(before)].count("\n") + 1
    start = max(node.lineno for node in ast.parse(text).body if node.lineno <= line) - 1
    lines = text.splitlines(keepends=True)
    changed = "".join(lines[start:]).replace(before, after, 1)
    return "".join([*lines[:start], code, "\n\n", changed])


def without_own(code: str, file: str) -> str:
    """Without imports from the file that it is to stand in, nor from that file's package."""
    own = file.removesuffix(".py").replace("/", ".")
    names = {own, own.rpartition(".")[0]} - {"fmoe", "pipelines"}
    lines = code.splitlines(keepends=True)
    for node in reversed(ast.parse(code).body):
        if isinstance(node, ast.ImportFrom) and node.module in {*names, "__future__"}:
            del lines[node.lineno - 1 : node.end_lineno]
    return re.split(r"^if __name__", "".join(lines), flags=re.MULTILINE)[0]
