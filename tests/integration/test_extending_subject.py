"""A foreign model that stands in a test alone, judged by two Ray workers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fmoe.data import Data
from fmoe.on_ray.evaluate import evaluate
from fmoe.on_ray.session import Resources
from pipelines.judging import run as judging
from tests.extending.test_subject import (
    NO_MIXTURE,
    SETTINGS,
    Foreign,
    in_one_process,
    opened,
    trained,
)
from tests.integration.conftest import Outcome

Fmoe = Callable[..., Outcome]


def test_two_workers_say_what_one_process_says(ray_session: None, digits: Data) -> None:
    model, test = trained(digits.train), digits.test[:80]
    found = evaluate(model, Foreign(), test, SETTINGS, resources=Resources(1, 0))
    alone = in_one_process(model, test)
    assert found.skipped == alone.skipped == NO_MIXTURE
    assert found.columns.keys() == alone.columns.keys()
    assert all(torch.equal(found.columns[key], alone.columns[key]) for key in alone.columns)


def test_the_command_judges_it(
    fmoe: Fmoe,
    ray_session: None,
    digits: Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one more spelling of MODEL, in the one place where these are told apart."""
    it = opened(trained(digits.train), Foreign())
    monkeypatch.setattr(judging, "opened", {it.name: it}.__getitem__)
    flags = ("--attacks", "fgsm,mixture", "--eps", "0.1", "--limit", "40", "--json")
    refused = fmoe("evaluate", it.name, *flags)
    assert refused.code == 2
    assert "--data: python:" in refused.err
    answer = fmoe(
        "evaluate", it.name, "--data", "digits", "--report", tmp_path / "page", *flags
    ).json
    assert answer["skipped"] == NO_MIXTURE
    assert answer["notes"].count("what the model was trained on is not known") == 1
    assert (answer["full"], answer["images"]) == (False, 40)
    report = json.loads((tmp_path / "page" / "evaluation.json").read_text())
    assert report["robust"] == answer["robust"]
