"""What an import costs and does: heavy packages only where they are used, no side effects."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = """
import sys
{code}
print("loaded:", *sorted({{"torch", "ray", "mlflow"}} & set(sys.modules)))
"""

HELP = """
from pipelines.cli import main
try:
    main(["--help"])
except SystemExit as end:
    assert not end.code, end.code
"""


def loaded(code: str, home: Path) -> set[str]:
    """Which of the heavy packages a fresh interpreter has after `code`."""
    result = subprocess.run(
        [sys.executable, "-c", PROBE.format(code=code)],
        env={**os.environ, "FMOE_HOME": str(home)},
        cwd=home.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("code", ["import fmoe", "import pipelines.cli", HELP])
def test_nothing_heavy_is_loaded(code: str, tmp_path: Path) -> None:
    assert loaded(code, tmp_path / "home") == set()
    assert list(tmp_path.iterdir()) == []  # neither the home nor anything beside it


def test_the_mathematics_needs_neither_ray_nor_mlflow(tmp_path: Path) -> None:
    code = "import fmoe.training, fmoe.evaluation, fmoe.training.joint, fmoe.training.expert_store"
    assert loaded(code, tmp_path / "home") == {"torch"}
    assert list(tmp_path.iterdir()) == []


def test_help_of_the_module(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "--help"],
        env={**os.environ, "FMOE_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert "train" in result.stdout
    assert not (tmp_path / "home").exists()
