"""The file maps of README.md and docs/files.md, out of the modules' own first lines.

python -m tests.file_map    # writes both anew
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("fmoe", "pipelines", "tune_spaces")
BEGIN, END = "<!-- file map: python -m tests.file_map -->\n", "<!-- end of the file map -->\n"


def first_line(module: Path) -> str:
    """Of its docstring; raises `ValueError` where it has none."""
    text = ast.get_docstring(ast.parse(module.read_text()))
    if not text:
        raise ValueError(f"{module.relative_to(ROOT)}: has no docstring")
    return text.splitlines()[0]


def folders(folder: Path) -> Iterator[Path]:
    """The packages of its top level, by name."""
    return (path for path in sorted(folder.iterdir()) if (path / "__init__.py").exists())


def short() -> str:
    """A line for each folder of the packages' top level, for README.md."""
    lines = []
    for package in PACKAGES:
        lines += [f"{package + '/':<16}{first_line(ROOT / package / '__init__.py')}"]
        for folder in folders(ROOT / package):
            lines += [f"  {folder.name + '/':<14}{first_line(folder / '__init__.py')}"]
    return "\n".join(["```", *lines, "```", ""])


def whole() -> str:
    """A line for each module, for docs/files.md."""
    lines = ["# Files", "", "Every module by its first line.", ""]
    for package in PACKAGES:
        lines += [f"## {package}", ""]
        for module in sorted((ROOT / package).rglob("*.py")):
            lines += [f"- `{module.relative_to(ROOT)}`: {first_line(module)}"]
        lines += [""]
    return "\n".join(lines)


def with_map(readme: str) -> str:
    before, _, rest = readme.partition(BEGIN)
    return f"{before}{BEGIN}{short()}{END}{rest.partition(END)[2]}"


def main() -> None:
    readme = ROOT / "README.md"
    readme.write_text(with_map(readme.read_text()))
    (ROOT / "docs" / "files.md").write_text(whole())


if __name__ == "__main__":
    main()
