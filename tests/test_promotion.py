"""The rules of promotion, over verdicts made by hand."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
import torch

from fmoe.evaluation import FULL, PROTOCOL, paired
from fmoe.evaluation.promotion import Evidence, faults, foreign, lacks, not_better
from fmoe.version import VERSION

REPORT = {
    "sha256": "abc",
    "protocol": PROTOCOL,
    "versions": {"fmoe": VERSION},
    "revision": "r1",
    "attacks": list(FULL),
    "test_images": 400,
    "flags": [],
    "data": "cifar10",
    "digest": "d",
    "test_digest": "t",
    "trained_on_data": "cifar10",
    "trained_on": "d",
    "trained_on_test": "t",
    "selected_on": "validation",
    "eps": 0.1,
    "recipe_eps": 0.1,
    "images": 400,
    "seed": 0,
}


def evidence(right: int, broken: int, version: int = 2, n: int = 400, **report: Any) -> Evidence:
    """The first `right` images are right, the first `broken` of these do not survive."""
    table = pa.table(
        {
            "label": [1] * n,
            "prediction": [1] * right + [0] * (n - right),
            "success_pgd": pa.array([i < broken if i < right else None for i in range(n)]),
        }
    )
    worst = {"worst_case": (right - broken) / n}
    return Evidence(version, "abc", {**REPORT, **worst, **report}, table)


def test_the_worst_case_comes_from_the_verdicts() -> None:
    assert evidence(300, 100).worst_case == 0.5


def test_a_full_evaluation_has_no_faults() -> None:
    assert faults(evidence(300, 100), "r1") == []


@pytest.mark.parametrize(
    ("report", "fault"),
    [
        ({"sha256": "other"}, "of other weights"),
        ({"protocol": PROTOCOL - 1}, f"protocol {PROTOCOL - 1}, this is {PROTOCOL}"),
        ({"revision": "r0"}, "(r0), this is"),
        ({"versions": {}}, "evaluated by fmoe None"),
        ({"attacks": ["fgsm", "pgd"]}, "not evaluated with autoattack, mixture, pgd50, sweeps"),
        ({"flags": ["random: two passes differ"]}, "flag random"),
        ({"eps": 0.05}, "eps 0.05, the recipe's is 0.1"),
        ({"test_images": 5000}, "400 images, at least 1000"),
        ({"data": "svhn"}, "another data set than it was trained with (svhn, not cifar10)"),
        ({"test_digest": "u"}, "other test images than those of the data set"),
        ({"test_digest": "u", "digest": "e"}, "other test images than those of the data set"),
        ({"digest": "e"}, "leaks were looked for among other training images"),
        ({"digest": None}, "the training images were not there to look for leaks"),
        ({"selected_on": None}, "selected on None, not on validation"),
        ({"selected_on": "test"}, "selected on test, not on validation"),
    ],
)
def test_what_stops_a_promotion(report: dict[str, Any], fault: str) -> None:
    found = faults(evidence(300, 100, **report), "r1")
    assert len(found) == 1
    assert fault in found[0]


@pytest.mark.parametrize(
    "report", [{"flags": None}, {"worst_case": 0.51}, {"worst_case": None}, {"images": 399}]
)
def test_a_report_and_verdicts_of_two_evaluations_are_none(report: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"flags|same evaluation"):
        evidence(300, 100, **report)


def test_what_makes_an_evaluation_full() -> None:
    assert lacks(REPORT) == []
    assert len(lacks({**REPORT, "attacks": ["pgd"], "eps": 0.2, "images": 10})) == 3
    assert lacks({**REPORT, "images": 10, "test_images": 10}) == []


def test_a_champion_of_other_weights_is_judged_again() -> None:
    champion = evidence(300, 100, version=1, sha256="other")
    assert "1's evaluation is of other weights" in str(not_better(evidence(300, 0), champion))


def test_better_by_more_than_the_paired_interval() -> None:
    champion = evidence(300, 100, version=1)
    assert not_better(evidence(300, 80), champion) is None  # 20 images gained, none lost
    assert "not surely better" in str(not_better(evidence(300, 98), champion))
    assert "-2.5 points" in str(not_better(evidence(300, 110), champion))


@pytest.mark.parametrize(
    ("report", "what"),
    [
        ({"test_digest": "other"}, "test images"),
        ({"test_digest": None}, "test images"),  # an evaluation of before
        ({"eps": 0.2, "seed": 1}, "eps, seed"),
    ],
)
def test_a_champion_judged_otherwise_is_judged_again(report: dict[str, Any], what: str) -> None:
    champion = evidence(300, 100, version=1, **report)
    assert f"champion 1 was judged with other {what}: evaluate it again" in str(
        not_better(evidence(300, 0), champion)
    )


def test_verdicts_on_other_labels_are_not_compared() -> None:
    ours, theirs = evidence(300, 0), evidence(300, 100, version=1)
    labels = pa.array([1] * 399 + [2])
    table = theirs.verdicts.set_column(0, "label", labels)
    champion = Evidence(1, "abc", theirs.report, table)
    assert "judged with other labels" in str(not_better(ours, champion))


def test_a_champion_of_other_training_images_is_compared_on_the_same_test_images() -> None:
    champion = evidence(300, 100, version=1, digest="e", trained_on="e")
    assert not_better(evidence(300, 0), champion) is None


OLD_CARD = {"trained_on_test": None}


@pytest.mark.parametrize(
    ("report", "why"),
    [
        ({}, None),
        ({"digest": None}, None),  # test files alone
        ({"digest": "e"}, None),  # beside other training images
        ({"test_digest": "u"}, "other test images"),
        ({"data": "svhn"}, "another data set"),
        (OLD_CARD, None),
        ({**OLD_CARD, "digest": "e"}, "another data set"),
        ({**OLD_CARD, "digest": None}, "is not known"),
    ],
)
def test_whose_test_images_they_are(report: dict[str, Any], why: str | None) -> None:
    found = foreign({**REPORT, **report})
    assert found is None if why is None else why in str(found)


def test_paired_interval_by_hand() -> None:
    # a right where b is not: 6 images, the other way round: 2, of 10. With half an image in each
    # cell: 6.5, 2.5 and n 12: d = 4 / 12; half = 1.96 sqrt((9/12 - 1/9) / 12) = 0.452242
    a = torch.tensor([True] * 6 + [False] * 2 + [True, False])
    b = torch.tensor([False] * 6 + [True] * 2 + [True, False])
    low, high = paired(a, b)
    assert (low, high) == pytest.approx((1 / 3 - 0.452242, 1 / 3 + 0.452242), abs=1e-4)
    assert paired(b, a) == pytest.approx((-high, -low))
