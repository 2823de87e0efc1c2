"""Finished stages of an evaluation on disk: one that was killed goes on where it was."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import safetensors.torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open

from fmoe.evaluation.chunk import StageResult
from fmoe.storage.folder import Folder

FLAGS = TypeAdapter(list[str])
LARGEST = 256 * 2**20  # bytes of a stage of a chunk


@dataclass(frozen=True)
class Kept:
    """Files NNNN-STAGE.safetensors, a chunk's stage each. What cannot be read is done again."""

    folder: Folder

    def put(self, chunk: int, stage: str, result: StageResult) -> None:
        about = {"flags": json.dumps(result.flags), "seconds": repr(result.seconds)}
        columns = {name: column.contiguous() for name, column in result.columns.items()}
        self.folder.write(_name(chunk, stage), safetensors.torch.save(columns, about))

    def get(self, chunk: int, stage: str, images: int) -> StageResult | None:
        """images: of the chunk; columns of another length are none of it."""
        name = _name(chunk, stage)
        assert self.folder.local is not None
        try:
            if self.folder.size(name) > LARGEST:
                return None
            with safe_open(self.folder.local / name, framework="pt") as file:
                about = file.metadata()
                columns = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            flags, seconds = FLAGS.validate_json(about["flags"]), float(about["seconds"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None
        fits = all(column.ndim and len(column) == images for column in columns.values())
        return StageResult(columns, flags, seconds) if fits and math.isfinite(seconds) else None

    def drop(self) -> None:
        self.folder.delete()


def _name(chunk: int, stage: str) -> str:
    return f"{chunk:04d}-{stage}.safetensors"
