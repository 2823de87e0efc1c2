"""Which Parquet files make up a part, by their names and folders.

`train-00000-of-00002.parquet`, `validation.parquet`, `data/test/0000.parquet`; files that name no
part are one that is not cut yet. (The known sets' own rules: `fmoe.data.readers.shards`.)
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from fmoe.data.own import PartName
from fmoe.data.readers.files import names_in, refuse_unfinished
from fmoe.data.sources.folders import PARTS, natural
from fmoe.errors import UserError

INNER = ("data", "default", "plain_text")
"""Folders in which the hub keeps the files of its only configuration."""
OF_PART = re.compile(
    rf"(?P<part>{'|'.join(PARTS)})(-\d+(-of-\d+(-[0-9a-f]+)?)?)?\.parquet", re.IGNORECASE
)
SHARD = re.compile(r".*?(?P<index>\d+)-of-(?P<total>\d+)(-[0-9a-f]+)?\.parquet")
NUMBERED = re.compile(r"(.*[^\d])?\d+(-of-\d+(-[0-9a-f]+)?)?\.parquet")


def files(place: Path) -> list[Path]:
    """All Parquet files of a folder, or of one of the hub's within it, and of the parts' folders
    there. Raises `UserError` where there are some in two of them."""
    found = {root: files_of(root) for root in (place, *(place / name for name in INNER))}
    there = [files for files in found.values() if files]
    if len(there) > 1:
        raise UserError(f"{there[0][0]} and {there[1][0]}: two layouts; keep one")
    return there[0] if there else []


def files_of(root: Path) -> list[Path]:
    parts = [root / name for name in names_in(root) if name.lower() in PARTS]
    found: list[Path] = []
    for folder in (root, *(part for part in parts if part.is_dir())):
        names = names_in(folder)
        refuse_unfinished(folder, names, lambda name: name.lower().endswith(".parquet"))
        found += [folder / name for name in names if name.lower().endswith(".parquet")]
    return found


def parts(place: Path) -> dict[PartName | None, list[Path]]:
    parts: dict[PartName | None, list[Path]] = defaultdict(list)
    for file in files(place):
        match = OF_PART.fullmatch(file.name)
        by_name = PARTS[match["part"].lower()] if match else None
        inside = PARTS.get(file.parent.name.lower()) if file.parent != place else None
        if by_name and inside and by_name != inside:
            raise UserError(f"{file}: is it {by_name}, by its name, or {inside}, by its folder?")
        if match is None and inside is None and file.name.lower().startswith(tuple(PARTS)):
            raise UserError(
                f"{file}: no name of a part that is read (such as train-00000-of-00002.parquet); "
                "rename or remove it"
            )
        parts[by_name or inside].append(file)
    if None in parts and len(parts) > 1:
        file = parts[None][0]
        raise UserError(f"{file}: its name says no part (such as train-{file.name})")
    for some in parts.values():
        some.sort(key=lambda file: natural(str(file)))
        refuse_incomplete(some)
    return dict(parts)


def refuse_incomplete(files: list[Path]) -> None:
    """Of numbered shards each is there once, and all are of one generation."""
    shards = [(file, match) for file in files if (match := SHARD.fullmatch(file.name))]
    unnumbered = [file for file in files if not NUMBERED.fullmatch(file.name)]
    if unnumbered and len(files) > 1:
        raise UserError(f"{unnumbered[0]}: stands beside {len(files) - 1} more; number them")
    if not shards:
        numbers = sorted(int(re.findall(r"\d+", file.stem)[-1]) for file in files if not unnumbered)
        if len(files) > 1 and numbers != list(range(len(files))):
            raise UserError(f"{files[0].parent}: shards {numbers[:8]}; expected 0 on, each once")
        return
    totals = {int(match["total"]) for _, match in shards}
    if len(totals) > 1 or len(shards) < len(files):
        raise UserError(
            f"{files[0].parent}: two generations of one part, {files[0].name} and "
            f"{files[-1].name}; keep one"
        )
    (total,) = totals
    missing = set(range(total)) - {int(match["index"]) for _, match in shards}
    if missing:
        raise UserError(
            f"{files[0].parent}: {len(missing)} of {total} shards missing, first number "
            f"{min(missing)}; fetch it again"
        )
    if len(files) != total:
        raise UserError(f"{files[0].parent}: {len(files)} shards, and their names say {total}")
