"""Shells complete commands, options, recipes and spaces, without importing torch for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def offered(words: str, folder: Path) -> set[str]:
    """What bash would show after these words, the last of which is not complete."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pipelines.cli"],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent.parent),
            "_FMOE_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert " torch" not in {line.rpartition("|")[2].rstrip() for line in done.stderr.splitlines()}
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("fmoe tr", {"train"}),
        ("fmoe config s", {"schema", "show"}),
        ("fmoe train digits", {"digits", "digits-single", "digits-whole"}),
        ("fmoe tune cifar10-small", {"cifar10-small", "cifar10-small-branched"}),
        ("fmoe train mi", {"mine.yaml"}),
        ("fmoe train digits --dr", {"--dry-run"}),
    ],
)
def test_a_shell_is_offered(words: str, wanted: set[str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("recipe: digits\n")
    assert offered(words, tmp_path) == wanted


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_is_printed(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "--show-completion", shell],
        # typer asks its parents which shell this is, and a test may have none among them
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "_FMOE_COMPLETE" in done.stdout, done.stderr
