"""Notebooks run from top to bottom in a folder of their own, and are stored without outputs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MINUTES = 5
"""That a person is told it takes on a laptop; each cell has as long here, whatever runs beside."""


def test_there_are_notebooks() -> None:
    assert [notebook.name for notebook in NOTEBOOKS] == ["first_look.ipynb"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_without_outputs(notebook: Path) -> None:
    cells = nbformat.read(notebook, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_code_is_as_our_own(notebook: Path) -> None:
    for command in (["check", "-q"], ["format", "-q", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, str(notebook)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell, in an empty folder; what it prints of the comparison is looked at."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made = nbformat.read(notebook, as_version=4)
    client = NotebookClient(
        made, timeout=MINUTES * 60, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    said = "".join(
        output.get("text", "") for cell in made.cells for output in cell.get("outputs", [])
    )
    assert "model.safetensors" in said
    judged = [line for line in said.splitlines() if "worst case" in line]
    assert len(judged) >= 2
    for line in judged[:2]:
        assert float(re.findall(r"worst case ([0-9.]+)%", line)[0]) > 60, line
    figures = [
        o
        for cell in made.cells
        for o in cell.get("outputs", [])
        if "image/png" in o.get("data", {})
    ]
    assert len(figures) == 3
