"""What is known of a data set, changed for a test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fmoe.data import sets as data_sets
from fmoe.data.facts import Identity


def identity(digest: str = "digest", val_images: int | None = None) -> Identity:
    """Of digits with this digest of its training images, which nothing has."""
    known = data_sets.named("digits")
    return Identity(known.facts, digest, val_images or known.info.val_images)


def edit_info(monkeypatch: pytest.MonkeyPatch, name: str = "digits", **changes: Any) -> None:
    """As if the data set's class said so."""
    found = data_sets.named(name)
    edited = found.model_copy(update={"info": replace(found.info, **changes)})
    sets = tuple(edited if one is found else one for one in data_sets.DATA_SETS)
    monkeypatch.setattr(data_sets, "DATA_SETS", sets)
