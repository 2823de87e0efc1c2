"""Figures by class and the confusion under attack, by hand."""

from __future__ import annotations

import pytest
import torch

from fmoe.attacks.threat import Linf
from fmoe.evaluation import Settings, by_class
from fmoe.evaluation.findings import Findings

NAMES = ("ant", "bee", "cat", "dog")
LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 2])


def findings(**columns: list[int]) -> Findings:
    """Image 3 is wrong to begin with; fgsm breaks 0 and 4, pgd those and 5."""
    said = {"prediction.clean": torch.tensor([0, 0, 0, 2, 1, 1, 2])}
    attacks = {
        "fgsm": ([1, 0, 0, 0, 1, 0, 0], [1, 1, 1, 0, 1, 1, 1], [2, 0, 0, 0, 0, 1, 2]),
        "pgd": ([1, 0, 0, 0, 1, 1, 0], [0, 1, 1, 0, 0, 1, 1], [0, 0, 0, 0, 0, 2, 2]),
    }
    for name, (broken, attacked, prediction) in attacks.items():
        said |= {
            f"broken.{name}": torch.tensor(broken).bool(),
            f"attacked.{name}": torch.tensor(attacked).bool(),
            f"prediction.{name}": torch.tensor(prediction),
        }
    return Findings(Settings(("fgsm", "pgd"), Linf(eps=0.1)), LABELS, said)


def test_figures_of_each_class() -> None:
    found = by_class.by_class(findings(), NAMES)
    assert list(found) == list(NAMES)
    assert found["ant"] == {
        "images": 4, "clean": 0.75, "robust": {"fgsm": 0.5, "pgd": 0.5}, "worst_case": 0.5,
    }  # fmt: skip
    assert found["bee"]["robust"] == {"fgsm": 0.5, "pgd": 0.0}
    assert found["cat"]["worst_case"] == 1.0
    assert found["dog"] == {
        "images": 0, "clean": None, "robust": {"fgsm": None, "pgd": None}, "worst_case": None,
    }  # fmt: skip
    whole = findings()
    weighted = sum(of["images"] * of["clean"] for of in found.values() if of["images"])
    assert weighted / len(LABELS) == pytest.approx(whole.clean)
    assert by_class.balanced(found, "worst_case") == pytest.approx((0.5 + 0 + 1) / 3)


def test_the_confusion_after_the_strongest_attack() -> None:
    """What pgd was not run on is what fgsm, or no attack, has it taken for."""
    found = by_class.confusion(findings(), 4)
    assert found == {
        "attack": "pgd",
        "images": [[2, 0, 2, 0], [1, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]],
        "other": [0, 0, 0, 0],
    }
    few = by_class.confusion(findings(), 3)
    assert few is not None
    assert few["other"] == [0, 0, 0]
    alone = Findings(findings().settings, LABELS, {"prediction.clean": LABELS})
    assert by_class.confusion(alone, 4) is None


def test_what_is_no_class_is_not_counted() -> None:
    said = torch.tensor([0, -1, 3, 1])
    assert by_class.counted(torch.tensor([0, 0, 1, 1]), said, 2).tolist() == [[1, 0], [0, 1]]


def test_imbalance_is_of_the_whole_split() -> None:
    found = by_class.by_class(findings(), NAMES)
    even = torch.tensor([0, 1, 2, 3, 0, 1])
    assert by_class.imbalance(found, torch.bincount(even, minlength=4).tolist()) == []
    (missing, unlike) = by_class.imbalance(found, torch.bincount(LABELS, minlength=4).tolist())
    assert missing == "class-imbalance: no image of 1 of 4 classes, first 'dog'"
    assert unlike.startswith("class-imbalance: 4 test images of 'ant' and 1 of 'cat'; the mean")
    assert "91.7% clean and 50.0% in the worst case" in unlike
