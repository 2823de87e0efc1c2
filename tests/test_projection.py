"""FAB's projection without sorting against pyautoattack's, and by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pyautoattack import fab_base
from pyautoattack.fab_projections import projection_linf as library
from torch import Tensor, nn

from fmoe.attacks.threat import Linf
from fmoe.data import Data, Split
from fmoe.evaluation import Settings, judge
from fmoe.fast import projection
from fmoe.fast.projection import projection_linf
from tests.networks import learnt


@pytest.mark.parametrize(
    ("point", "w", "b", "step"),
    [
        ([0.5, 0.5], [1.0, 1.0], 1.4, [0.2, 0.2]),
        ([0.9, 0.5], [1.0, 1.0], 1.8, [0.1, 0.3]),  # the first is at its bound
        ([0.5, 0.5], [1.0, -2.0], -1.1, [-0.2, 0.2]),
        ([0.5, 0.5], [1.0, 0.0], 0.6, [0.1, 0.0]),
        ([0.5, 0.4], [1.0, 1.0], 3.0, [0.5, 0.6]),  # out of reach
        ([0.5, 0.5], [1.0, 1.0], 1.0, [0.0, 0.0]),
        ([0.5, 0.5], [0.0, 0.0], 1.0, [0.0, 0.0]),
    ],
)
def test_steps_by_hand(point: list[float], w: list[float], b: float, step: list[float]) -> None:
    found = projection_linf(torch.tensor([point]), torch.tensor([w]), torch.tensor([b]))
    torch.testing.assert_close(found, torch.tensor([step]))


def test_steps_are_the_librarys() -> None:
    torch.manual_seed(0)
    points, w = torch.rand(200, 3072), torch.randn(200, 3072) ** 3
    points[:, ::7], points[:, 3::11], w[:, ::13] = 0, 1, 0
    far = torch.logspace(-4, 0.3, 200)  # some of the hyperplanes miss the box
    b = (w * points).sum(1) + torch.randn(200) * far * w.abs().sum(1)
    ours, theirs = projection_linf(points, w, b), library(points, w, b)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
    reached = ((w * (points + ours)).sum(1) - b).abs() < 1e-4 * w.abs().sum(1)
    assert 20 < reached.sum() < 200


def test_fab_projects_so_in_a_fast_evaluation_alone(
    digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, asked = learnt(digits, width=4, steps=80), 0

    def counted(*tensors: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        return projection_linf(*tensors)

    monkeypatch.setattr(projection, "projection_linf", counted)
    plain = Settings(("autoattack",), Linf(eps=0.06), fast=False)
    verdicts = [broken(net, digits.test[:6], plain)]
    assert asked == 0
    verdicts.append(broken(net, digits.test[:6], replace(plain, fast=True)))
    assert asked > 100
    assert torch.equal(*verdicts)
    assert 0 < verdicts[0].sum() < 6
    assert fab_base.projection_linf is library


def broken(net: nn.Module, part: Split, settings: Settings) -> Tensor:
    """By FAB alone."""
    with torch.no_grad():
        before = {"prediction.clean": net(part.pixels()).argmax(1)}
    return judge(net, part, 0, "autoattack.fab-t", before, settings).columns["broken.autoattack"]
