"""The house: arrows go one way, among modules as among layers."""

from __future__ import annotations

import grimp
import pytest

from tests import file_map


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Module to what it imports, inside functions and for types alone as well."""
    graph = grimp.build_graph("fmoe", "pipelines")
    return {name: set(graph.find_modules_directly_imported_by(name)) for name in graph.modules}


def reached(start: str, imports: dict[str, set[str]]) -> set[str]:
    """What a module imports, and what that imports, and so on."""
    found: set[str] = set()
    left = [start]
    while left:
        new = imports[left.pop()] - found
        found |= new
        left.extend(new)
    return found


def in_circles(imports: dict[str, set[str]]) -> set[str]:
    return {name for name in imports if name in reached(name, imports)}


def test_no_module_imports_itself_by_way_of_others(imports: dict[str, set[str]]) -> None:
    assert len(imports) > 100
    imports["fmoe"].discard("fmoe.locate")  # `fmoe.load` imports inside the function
    assert in_circles(imports) == set()


def test_circles_are_found() -> None:
    imports = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"a"}}
    assert in_circles(imports) == {"a", "b", "c"}


def test_the_file_maps_are_the_modules_first_lines() -> None:
    """Where they differ, `python -m tests.file_map` writes them anew."""
    readme = (file_map.ROOT / "README.md").read_text()
    assert readme == file_map.with_map(readme)
    assert (file_map.ROOT / "docs" / "files.md").read_text() == file_map.whole()


def test_a_first_line_is_a_sentence() -> None:
    for package in file_map.PACKAGES:
        for module in (file_map.ROOT / package).rglob("*.py"):
            assert file_map.first_line(module).endswith("."), module
