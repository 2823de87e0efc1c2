"""What is said about the project: the package's metadata, its licence and how it is cited."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.licenses import canonicalize_license_expression
from packaging.metadata import Metadata

from fmoe.version import VERSION

ROOT = Path(__file__).parent.parent
PAPER = "https://arxiv.org/abs/2512.20821"
AUTHORS = "the fmoe authors"
APACHE = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
"""sha256 of https://www.apache.org/licenses/LICENSE-2.0.txt."""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    entry: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return entry


@pytest.fixture(scope="module")
def citation() -> dict[str, Any]:
    entry: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    return entry


def test_the_licence_is_a_known_expression_and_its_text_is_there(project: dict[str, Any]) -> None:
    assert canonicalize_license_expression(project["license"]) == project["license"]
    (name,) = project["license-files"]
    assert hashlib.sha256((ROOT / name).read_bytes()).hexdigest() == APACHE
    # PEP 639: no classifier beside the expression
    assert not [entry for entry in project["classifiers"] if entry.startswith("License ::")]


def test_the_metadata_is_what_a_package_index_takes(
    project: dict[str, Any], tmp_path: Path
) -> None:
    """Built by the backend itself, and read by the rules of PyPI."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    build = "from setuptools import build_meta as b; b.prepare_metadata_for_build_wheel('out')"
    out = tmp_path / "out"
    out.mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "error:::setuptools", "-c", build],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = out.glob("*.dist-info")
    built = Metadata.from_email((folder / "METADATA").read_bytes(), validate=True)
    assert (built.name, str(built.version)) == ("fmoe", VERSION)
    assert built.license_expression == "Apache-2.0"
    assert built.license_files == ["LICENSE"]
    assert (folder / "licenses" / "LICENSE").is_file()
    assert built.author == AUTHORS
    assert built.project_urls == {"Paper": PAPER}
    assert built.classifiers == project["classifiers"]
    assert "Typing :: Typed" in project["classifiers"]
    assert set(built.keywords or []) == set(project["keywords"])
    assert built.requires_python == project["requires-python"]


def test_the_pythons_are_those_on_which_tests_are_run(project: dict[str, Any]) -> None:
    version = "Programming Language :: Python :: 3."
    named = [int(e.removeprefix(version)) for e in project["classifiers"] if e.startswith(version)]
    assert project["requires-python"] == f">=3.{min(named)}"
    assert sys.version_info.minor in named


def test_citation_has_what_the_format_asks_for(
    citation: dict[str, Any], project: dict[str, Any]
) -> None:
    """The required keys of the Citation File Format 1.2.0, and what pyproject.toml says."""
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["version"] == project["version"] == VERSION
    assert citation["license"] == project["license"]
    assert citation["authors"] == project["authors"] == [{"name": AUTHORS}]


def test_citation_names_the_paper(citation: dict[str, Any], project: dict[str, Any]) -> None:
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert paper["title"].startswith("Divided We Fall: ")
    assert [each["family-names"] for each in paper["authors"]] == ["Meymani", "Razavi-Far"]
    assert paper["url"] == project["urls"]["Paper"] == PAPER
    assert paper["identifiers"][0]["value"] == f"arXiv:{PAPER.rpartition('/')[2]}"


def test_contributing_names_targets_and_files_that_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    targets = {line.split(":")[0] for line in (ROOT / "Makefile").read_text().splitlines()}
    named = {part.split("`")[0] for part in text.split("`make ")[1:]}
    assert {"setup", "test", "test-cluster", "docs", "lint", "format", "bench"} == named
    assert named <= targets
    for file in ("benchmarks/LOG.md", "benchmarks/results", "tests/extending", "constraints.txt"):
        assert f"`{file}" in text
        assert (ROOT / file).exists()
