"""The site as `make docs` builds it: without a warning, whole, and readable on a phone."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import typer

from fmoe import config
from fmoe.tuning import search_space
from pipelines.cli import app
from tests.pages import DOCS, ROOT


def of_docs(name: str) -> ModuleType:
    """A module of docs/, which is no package."""
    spec = spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--nitpicky"]
    done = subprocess.run(
        [*command, "--quiet", "-b", "html", "-d", str(folder / "kept"), "docs", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_commands_are_told_by_themselves(site: Path) -> None:
    page = (site / "reference" / "commands.html").read_text()
    walked = list(of_docs("generated").walk("fmoe", typer.main.get_command(app)))
    assert len(walked) > 20
    for path, command in walked[1:]:
        assert f'id="{path.replace(" ", "-")}"' in page, path
        for param in command.params:
            option = param.opts[0]
            if option.startswith("-") and not param.hidden:
                assert f">{option}" in page, f"{path} {option}"


def test_recipes_and_spaces_are_shown_whole(site: Path) -> None:
    for page, names in (("recipes", config.recipes()), ("spaces", search_space.spaces())):
        html = (site / "reference" / f"{page}.html").read_text()
        assert all(f'id="{name}"' in html for name in names)
        assert "generated:" not in html


def test_docstrings_are_read(site: Path) -> None:
    page = (site / "reference" / "python.html").read_text()
    assert "rows sum to 1" in page
    assert 'id="fmoe.attacks.PGD"' in page
    assert "steps=10" in re.sub(r"<[^>]+>", "", page)
    assert "model_config" not in page


def test_nothing_is_fetched(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        assert not re.search(r'<(script|link|img)[^>]+(src|href)="https?:', page.read_text()), page


@pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="no chromium and chromedriver here",
)
def test_no_page_is_wider_than_its_screen(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looking = of_docs("screenshots_site")
    monkeypatch.setattr(looking, "SITE", site)
    names = sorted(page.relative_to(site).with_suffix("") for page in site.rglob("*.html"))
    views = [(name.as_posix(), "phone") for name in names]
    views += [(name, "desktop") for name in ("index", "guides/own-data", "reference/commands")]
    with looking.browser() as driver:
        for name, kind in views:
            looking.look(driver, name, looking.WIDTHS[kind])
            seen = driver.execute_script(looking.OVERFLOW)
            assert seen["wide"] <= seen["inner"], f"{name} {kind}"
            assert seen["out"] == [], f"{name} {kind}"


def test_figures_are_what_their_script_draws() -> None:
    """Where they differ, `python docs/figures.py` draws them anew."""
    drawn = of_docs("figures").FIGURES
    assert {file.stem for file in (DOCS / "figures").iterdir()} == drawn.keys()
    for name in drawn.keys() - {"importance"}:
        assert (DOCS / "figures" / f"{name}.svg").read_text() == drawn[name](), name


def test_importances_are_the_studys() -> None:
    """What the page says of them; another scikit-learn may move them by a little."""
    found = of_docs("figures").importances()
    assert sum(found.values()) == pytest.approx(1)
    attack = [share for path, share in found.items() if path.startswith("joint.attack.")]
    assert len(attack) == 4
    assert sum(attack) == pytest.approx(0.70, abs=0.05)
    shown = re.findall(r">(\d+)%<", (DOCS / "figures" / "importance.svg").read_text())
    assert [int(share) for share in shown] == pytest.approx(
        [100 * share for share in found.values()], abs=5
    )
