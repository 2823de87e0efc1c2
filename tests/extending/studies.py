"""A study with one more kind of scheduler or searcher, as if it stood in that union."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Union, get_args

import pytest
import yaml
from pydantic import Field, create_model

from fmoe.schema import Spec
from fmoe.tuning import search_space
from fmoe.tuning.search_space import Space


def with_kind(monkeypatch: pytest.MonkeyPatch, part: str, added: type[Spec]) -> None:
    """part: `scheduler` or `searcher`, whose union gets one more member."""
    study: Any = vars(search_space)["Study"]
    own = study.model_fields[part]
    union: Any = Union[(*get_args(own.annotation), added)]
    make: Any = create_model
    field = Annotated[union, Field(discriminator="kind")], own.default
    wider = make("Study", __base__=study, **{part: field})
    monkeypatch.setattr(search_space, "Study", wider)


def space_of(folder: Path, **keys: Any) -> Space:
    tree: dict[str, Any] = {
        "recipe": "digits-whole",
        "set": {"joint.epochs": 4},
        "space": {"gate.temperature": {"choice": [0.5, 1.0, 2.0]}},
    }
    file = folder / "space.yaml"
    file.write_text(yaml.safe_dump(tree | keys, sort_keys=False))
    return search_space.load(str(file))
