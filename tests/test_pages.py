"""README.md and docs/: every block is run or says why not, every link leads somewhere."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from benchmarks.guides import User
from tests import pages
from tests.pages import DOCS, README, ROOT, Block, Command

ALL = [README, *sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)]
OTHERS = [ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "tune_spaces/README.md")]
EXTERNAL = ("https://", "http://", "mailto:")
GENERATED = re.compile(r"^<!-- generated: ([a-z]+) -->$", re.MULTILINE)


def test_all_pages_are_in_the_table_of_contents() -> None:
    assert sorted(pages.in_order()) == sorted(ALL)
    assert len(ALL) > 25


@pytest.mark.parametrize("page", ALL, ids=pages.named)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    for block in pages.blocks(page):
        assert block.accounted_for, f"{block.where}: neither run nor marked"
        if block.note and block.note[0] == "run by":
            test = ROOT / block.note[1]
            assert page.name in test.read_text(), f"{block.where}: {test} does not name it"
        if block.note and block.note[0] == "not run":
            assert len(block.note[1]) > 15, f"{block.where}: {block.note[1]} is no reason"
        if block.kind == "console":
            assert block.commands, f"{block.where}: no line begins with `$ `"
        elif block.kind == "python" and block.to_run:
            compile(block.text, block.where, "exec")


def test_blocks_are_found_with_their_comments() -> None:
    found = {block.where: block for block in pages.blocks(README)}
    assert [block.kind for block in found.values()].count("console") == 2
    (demo, *_) = found.values()
    assert demo.note is not None
    assert demo.note[0] == "not run"
    assert [command.words for command in demo.commands] == [["make", "demo"], ["make", "test"]]


def test_a_block_is_read_as_it_would_be_typed() -> None:
    text = "$ a b \\\n    --c 'd e'\nsays 3 of 4\n…\nend\n$ f  # why\n"
    first, second = Block("page.md", 7, "console", text, None).commands
    assert (first.where, first.words) == ("page.md:8", ["a", "b", "--c", "d e"])
    assert (second.where, second.words) == ("page.md:13", ["f"])
    assert first.missing("says 3 of 4\nmore\nend\n") is None
    assert first.missing("says 3 of 5\nend") == "says 3 of 4"
    assert Command("", "", ("x …%", "y")).missing("y\nx 9%\n") == "y"  # in another order


@pytest.mark.parametrize("text", ["    a\n", "```\na\n```\n", "```yaml\na: 1\n```\n"])
def test_a_block_without_a_reason_is_found(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{text}")
    (block,) = pages.blocks(page, tmp_path)
    assert not block.accounted_for


def tokens(page: Path) -> list[Token]:
    """Everything within the page's text, tables too."""
    parsed = MarkdownIt("commonmark").enable("table").parse(page.read_text())
    return [child for token in parsed for child in [token, *(token.children or [])]]


def links(page: Path) -> list[str]:
    """Of links and images."""
    found = []
    for token in tokens(page):
        target = token.attrs.get("href" if token.type == "link_open" else "src")
        if target is not None:
            found.append(str(target))
    shown = re.findall(r"^```\{(?:image|include)\} (\S+)$", page.read_text(), re.MULTILINE)
    return [*found, *shown]


def anchors(page: Path) -> set[str]:
    """Of its headings, as MyST and GitHub make them."""
    parsed = MarkdownIt("commonmark").parse(page.read_text())
    titles = [after.content for token, after in pairwise(parsed) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def has(page: Path, anchor: str) -> bool:
    """Of what is generated, the site's own build looks at the anchors."""
    return anchor in anchors(page) or GENERATED.search(page.read_text()) is not None


def broken(page: Path, root: Path = ROOT) -> list[str]:
    """Links of the page to a file or a heading that is not there."""
    found = []
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if link.startswith(EXTERNAL):
            continue
        there = target.is_relative_to(root) and target.exists()
        if not there or (anchor and not has(target, anchor)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", [*ALL, *OTHERS], ids=pages.named)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# Other\n\n## In `it`: all\n")
    page.write_text(
        "[a](other.md#in-it-all) [b](other.md#nowhere) [c](gone.md) [d](https://x.org)\n\n"
        "| [e](#here) |\n|---|\n| ![f](../elsewhere.png) |\n"
    )
    assert broken(page, tmp_path) == ["other.md#nowhere", "gone.md", "#here", "../elsewhere.png"]


def test_links_to_elsewhere_are_few_and_safe() -> None:
    """They are listed here, and not fetched: whoever adds one looks at it."""
    hosts = {
        link.split("/")[2] for page in ALL for link in links(page) if link.startswith(EXTERNAL)
    }
    assert hosts == {"arxiv.org", "github.com"}
    assert not any(link.startswith("http:") for page in ALL for link in links(page))


def test_readme_begins_with_the_main_job_and_the_tests() -> None:
    """And is what a newcomer needs in two minutes."""
    first = pages.blocks(README)[0]
    assert [command.words for command in first.commands] == [["make", "demo"], ["make", "test"]]
    assert len(README.read_text().splitlines()) <= 150


def test_a_new_user_types_what_pages_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    (tmp_path / "work").mkdir()
    user = User(tmp_path / "work")
    user.console(Command("page.md:2", "echo $FMOE_HOME \\\n  $MLFLOW_TRACKING_URI.", ("…/home .",)))
    with pytest.raises(AssertionError, match="no line 'b'"):
        user.console(Command("page.md:5", "echo a", ("b",)))
    with pytest.raises(AssertionError, match=r"page.md:9: exit 3"):
        user.console(Command("page.md:9", "exit 3", ()))
    assert [step["where"] for step in user.steps] == ["page.md:2", "page.md:5", "page.md:9"]
