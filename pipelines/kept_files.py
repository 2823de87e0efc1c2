"""What runs and studies leave in their folders, checked where it is read again.

A folder may come from another person: each file has a bounded size and these types at least, or is
refused in one line with its name and the key.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, ValidationError

from fmoe.config import parse_yaml
from fmoe.documents import LARGEST_YAML
from fmoe.errors import UserError
from fmoe.schema import faults
from fmoe.storage.folder import Damaged, Folder
from fmoe.tuning.settings import Direction


class RunFile(BaseModel):
    """`run.json`."""

    run_id: str


class RunResult(BaseModel):
    """A run's `result.json`."""

    run_dir: str
    run_id: str
    model_uri: str
    digest: str
    test: dict[str, float]
    images: int
    eps: float
    norm: str = "linf"


class Measured(BaseModel):
    """What a study looks for."""

    metrics: dict[str, Direction] = Field(min_length=1)


class StudyFile(BaseModel):
    """`study.json`."""

    name: str
    file: str
    space: Measured
    run_id: str | None = None


class Figures(BaseModel):
    validation: dict[str, float]
    test: dict[str, float]


class Best(BaseModel):
    trial: int
    values: dict[str, Any]
    metrics: Figures
    model_uri: str
    digest: str
    run_id: str


class StudyResult(BaseModel):
    """A study's `result.json`."""

    study: str
    counts: dict[str, int]
    best: Best


def read(folder: Folder, name: str, kind: type[BaseModel]) -> dict[str, Any]:
    """The file's tree, which has what `kind` has. Raises FileNotFoundError and `UserError`."""
    try:
        tree = folder.read_json(name)
        kind.model_validate(tree)
    except Damaged as error:
        raise UserError(str(error)) from None
    except ValidationError as error:
        raise UserError(f"{folder.uri}/{name}: {faults(error, tree)}") from None
    return tree


def read_settings(folder: Folder) -> dict[str, Any]:
    """The tree of `config.yaml`. Raises FileNotFoundError and `UserError`."""
    source = f"{folder.uri}/config.yaml"
    try:
        return parse_yaml(folder.read("config.yaml", limit=LARGEST_YAML).decode(), source)
    except Damaged as error:
        raise UserError(str(error)) from None
    except UnicodeDecodeError:
        raise UserError(f"{source}: not a YAML file (not UTF-8)") from None
