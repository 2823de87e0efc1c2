"""docs/extending.md: every section with code is run by a test, and its code is formatted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.extending.document import BLOCK, PAGE, sections

WITH_CODE = [head for head, (_, body) in sections(PAGE.read_text()).items() if BLOCK.search(body)]


def test_every_section_with_code_is_run_by_a_test() -> None:
    used: list[str] = []
    for file in Path(__file__).parent.glob("test_*.py"):
        used += re.findall(r'section\("([^"]+)"\)', file.read_text())
    assert len(WITH_CODE) > 10
    assert sorted(used) == sorted(WITH_CODE)


@pytest.mark.parametrize("head", WITH_CODE)
def test_its_code_is_as_our_own(head: str) -> None:
    """By the project's linter, but for what a module has and a page's block has not."""
    _, body = sections(PAGE.read_text())[head]
    (code,) = BLOCK.findall(body)
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["check", "-q"], ["format", "-q", "--check"]):
        done = subprocess.run(
            [*ruff, *command, "--stdin-filename", "block.py", "-"],
            input=code, text=True, capture_output=True, check=False, cwd=PAGE.parent.parent,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
