"""Which Parquet files make up train and test: Hugging Face's names, all shards, one generation.

Of the hub's main branch `train-00000-of-00002.parquet`; with the fingerprint that `push_to_hub`
added `train-00000-of-00001-0a1b2c3d.parquet`; of refs/convert/parquet `train/0000.parquet`, and
before that `cifar10-train.parquet`. Without a total, numbers count from 0. Names that start with
neither part (`extra-`, `validation-`) are no part and ignored; those that do and follow no rule are
refused, for a part of which a file is left out looks like a smaller one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fmoe.data.readers.arrays import PARTS, Part
from fmoe.data.readers.files import names_in, refuse_unfinished
from fmoe.errors import UserError

NAME = re.compile(
    r"(?P<part>train|test)"
    r"(-(?P<index>\d{1,6})(-of-(?P<total>\d{1,6})(?P<fingerprint>-[0-9a-f]{6,64})?)?)?\.parquet"
)
NUMBER = re.compile(r"(?P<index>\d{1,6})\.parquet")
FEW = 3
"""File names in a message."""


@dataclass(frozen=True)
class Hub:
    """How the Hugging Face hub has a data set.

    config: the folder of its files; label: the column of the classes, beside which a file may hold
    other labels; names: the classes as its metadata spells them, where that is not as the set does;
    others: folders that are another task and never read, such as SVHN's `full_numbers`.
    """

    config: str = "default"
    label: str = "label"
    names: tuple[str, ...] | None = None
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shard:
    """index: None where the file is the whole part. total: None where the name has none."""

    file: Path
    index: int | None
    total: int | None


@dataclass
class Naming:
    """The shards of one folder that are named in one way."""

    pattern: str
    parts: dict[Part, list[Shard]] = field(default_factory=lambda: {part: [] for part in PARTS})


def subfolders(hub: Hub) -> list[str]:
    """Where the hub and its mirrors put the files, beneath a folder of the set."""
    return list(dict.fromkeys((".", hub.config, "data", "default")))


def namings(name: str, hub: Hub, place: Path) -> list[Naming]:
    """Every way in which a set's Parquet files are named in `place` and its subfolders."""
    namings: dict[str, Naming] = {}
    for subfolder in subfolders(hub):
        for part, pattern, shard in _shards(name, place / subfolder):
            pattern = str(Path(subfolder) / pattern)
            namings.setdefault(pattern, Naming(pattern)).parts[part].append(shard)
    return list(namings.values())


def _shards(name: str, folder: Path) -> Iterable[tuple[Part, str, Shard]]:
    names = names_in(folder)
    ours = re.compile(rf"({re.escape(name)}-)?({'|'.join(PARTS)})")
    refuse_unfinished(folder, names, lambda base: bool(ours.match(base)) and _is_parquet(base))
    for file in names:
        if ours.match(file) and _is_parquet(file):
            prefix = f"{name}-" if file.startswith(f"{name}-") else ""
            match = NAME.fullmatch(file.removeprefix(prefix))
            if match is None:
                raise _unknown(folder / file)
            yield _part(match["part"]), prefix + _pattern(match), _shard(folder / file, match)
    for part in PARTS:
        inner = names_in(folder / part)
        refuse_unfinished(folder / part, inner, _is_parquet)
        for file in filter(_is_parquet, inner):
            match = NUMBER.fullmatch(file)
            if match is None:
                raise _unknown(folder / part / file)
            shard = Shard(folder / part / file, int(match["index"]), None)
            yield part, "PART/0000.parquet", shard


def _is_parquet(name: str) -> bool:
    return name.endswith(".parquet")


def _part(text: str) -> Part:
    return "train" if text == "train" else "test"


def _pattern(match: re.Match[str]) -> str:
    index = "" if match["index"] is None else "-00000"
    total = "" if match["total"] is None else "-of-N"
    return f"PART{index}{total}{'-FINGERPRINT' if match['fingerprint'] else ''}.parquet"


def _shard(file: Path, match: re.Match[str]) -> Shard:
    index, total = (None if match[key] is None else int(match[key]) for key in ("index", "total"))
    return Shard(file, index, total)


def _unknown(file: Path) -> UserError:
    return UserError(
        f"{file}: no name of a shard that is read (such as train-00000-of-00002.parquet); "
        "rename or remove it"
    )


def complete(shards: list[Shard]) -> list[Path]:
    """The files of a part in order. Raises `UserError` unless each of them is there once."""
    first = shards[0]
    generations = {shard.total: shard.file.name for shard in shards}
    if len(generations) > 1:
        raise UserError(
            f"{first.file.parent}: two generations of one part, "
            f"{_listed(generations.values())}; keep one"
        )
    by_index: dict[int, list[Path]] = defaultdict(list)
    for shard in shards:
        by_index[shard.index or 0].append(shard.file)
    for files in by_index.values():
        if len(files) > 1:
            names = _listed(file.name for file in files)
            raise UserError(f"{files[0].parent}: one shard twice, {names}; keep one")
    total = max(by_index) + 1 if first.total is None else first.total
    beyond = [index for index in by_index if index >= total]
    if beyond:
        raise UserError(
            f"{by_index[beyond[0]][0]}: numbered beyond the {total} shards that it names"
        )
    if len(by_index) < total:
        index = next(index for index in range(total) if index not in by_index)
        raise UserError(
            f"{first.file.parent}: {total - len(by_index)} of {total} shards missing, first "
            f"{_renumbered(first.file.name, index)}; fetch it again"
        )
    return [by_index[index][0] for index in range(total)]


def _renumbered(name: str, index: int) -> str:
    """The name of a sibling; its fingerprint is not known."""
    match = re.fullmatch(r"(.*?)(\d+)(-of-\d+)?(-[0-9a-f]+)?\.parquet", name)
    assert match is not None
    digits = f"{index:0{len(match[2])}d}"
    return f"{match[1]}{digits}{match[3] or ''}{'-*' if match[4] else ''}.parquet"


def _listed(names: Iterable[str]) -> str:
    return " and ".join(sorted(names)[:FEW])
