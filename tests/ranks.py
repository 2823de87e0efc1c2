"""What several processes found, case by case: each writes a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file

from fmoe.storage.tensors import Tensors


def write(found: Mapping[str, Tensors], file: Path) -> None:
    """In one of the processes."""
    flat = {f"{case}/{n}": t.contiguous() for case, part in found.items() for n, t in part.items()}
    save_file(flat, file)


@dataclass(frozen=True)
class Ranks:
    """What was read from the files, in the order of the ranks."""

    found: list[Tensors]

    def of(self, case: str) -> list[Tensors]:
        prefix = f"{case}/"
        return [
            {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            for tensors in self.found
        ]
