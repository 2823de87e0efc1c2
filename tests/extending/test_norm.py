"""To add a norm: a class, and its name in the union of `fmoe.attacks.threat`. Here ℓ1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyautoattack import AutoAttack
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from fmoe import assembly, config, training
from fmoe.attacks import FGSM, NFGSM, PGD, threat
from fmoe.attacks.threat import L2, Linf
from fmoe.config import Config
from fmoe.data import Data
from fmoe.errors import UserError
from fmoe.evaluation import Evaluation, Settings, evaluate
from fmoe.evaluation.chunk import ROUNDING, Chunk
from fmoe.evaluation.iterated import ascending, until_broken
from fmoe.evaluation.promotion import Evidence, lacks, not_better
from fmoe.numerics.draw import Draw, shard
from fmoe.storage.checkpoint import Checkpoints, copy_state
from fmoe.storage.folder import Folder
from tests.conftest import SMALL
from tests.extending.document import section
from tests.test_promotion import REPORT
from tests.test_same_bits import images, labels, mixture

CODE = section("A norm")
L1 = CODE.L1

EPS = 4.0
ADDED = [
    "joint.attack={kind: pgd, norm: l1, eps: 4, steps: 2}",
    "joint.validation.attack={kind: pgd, norm: l1, eps: 4, steps: 2}",
    "joint.batch_size=16",
    "evaluate.norm=l1",
    "evaluate.eps=4",
]


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threat, "ThreatConfig", Linf | L2 | L1)


def recipe(*overrides: str) -> Config:
    return config.load("digits-whole", [*SMALL, *ADDED, *overrides])


def within(x_adv: Tensor, x: Tensor) -> bool:
    inside = bool(x_adv.min() >= 0) and bool(x_adv.max() <= 1)
    return inside and bool((L1(eps=EPS).distance(x_adv, x) <= EPS + ROUNDING).all())


@pytest.mark.parametrize("path", ["evaluate.norm=l1", "joint.attack={kind: pgd, norm: l1}"])
def test_only_norms_of_the_union_are_known(path: str) -> None:
    with pytest.raises(UserError, match=r"norm: unknown norm 'l1' \(there are: linf, l2\)$"):
        config.load("digits-whole", [path])


def test_a_recipe_names_it_and_keeps_it(added: None) -> None:
    chosen = recipe()
    assert chosen.evaluate.threat == L1(eps=EPS)
    assert config.validate(config.parse_yaml(chosen.to_yaml(), "again"), "again") == chosen


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (FGSM, {}),
        (FGSM, {"random_start": True, "loss": "kl"}),
        (PGD, {"steps": 4}),
        (PGD, {"steps": 2, "restarts": 2, "loss": "margin"}),
        (PGD, {"steps": 2, "random_start": False, "loss": "kl"}),
    ],
)
def test_attacks_stay_within_it(
    kind: type[FGSM | PGD], options: dict[str, Any], added: None
) -> None:
    model, x = mixture(), images(40)
    y = labels(x)
    other = kind.model_validate({"norm": "l1", "eps": EPS, **options})
    x_adv = other(model, x, y, draw=Draw(0))
    assert within(x_adv, x)
    assert Linf(eps=1).distance(x_adv, x).max() > 2 * EPS / 48  # not each pixel by as much
    with torch.no_grad():
        assert (model(x_adv).argmax(1) == y).sum() < (model(x).argmax(1) == y).sum()


def test_a_step_follows_the_gradient_itself(added: None) -> None:
    """On a linear model: all of eps in the pixel of the steepest gradient."""
    weight = torch.tensor([[0.0, 3.0], [0.0, 4.0]])
    x, y = torch.full((1, 1, 1, 2), 0.5), torch.tensor([1])
    x_adv = FGSM(eps=0.1, norm="l1")(lambda images: images.flatten(1) @ weight, x, y)
    torch.testing.assert_close(x_adv.flatten(), torch.tensor([0.5, 0.4]))


def test_workers_share_a_random_start(added: None) -> None:
    x = torch.full((6, 1, 8, 8), 0.5)
    ball = L1(eps=EPS)
    whole = ball.random_point(x, Draw(1, total=6))
    parts = [shard(6, rank, 2) for rank in range(2)]
    shares = [ball.random_point(x[rows], Draw(1, total=6, rows=rows)) for rows in parts]
    assert torch.equal(torch.cat(shares), whole)


def trained(digits: Data, folder: Path, epochs: int) -> dict[str, Tensor]:
    chosen = recipe(f"joint.epochs={epochs}", "joint.optimizer.schedule={kind: constant}")
    model = assembly.seeded_mixture(chosen)
    for epoch in training.epochs(
        model,
        training.Training(
            chosen.joint,
            chosen.joint.attack,
            digits.train[:32],
            digits.val[:32],
            chosen.data.augment,
        ),
        checkpoints=Checkpoints(Folder.at(folder), "joint"),
    ):
        assert {"val_robust", "val_fgsm"} <= epoch.metrics.keys()
    return copy_state(model)


def test_it_is_trained_against_and_resumed(digits: Data, added: None, tmp_path: Path) -> None:
    whole = trained(digits, tmp_path / "whole", 2)
    trained(digits, tmp_path / "parts", 1)
    parts = trained(digits, tmp_path / "parts", 2)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_what_is_for_boxes_is_refused(digits: Data, added: None) -> None:
    with pytest.raises(UserError, match="nfgsm is for linf alone, not l1: take fgsm or pgd"):
        recipe("joint.attack={kind: nfgsm, norm: l1}")
    assert NFGSM().norm == "linf"
    chosen = recipe("joint.warm_start=true")
    with pytest.raises(UserError, match=r"^warm_start: .*norm='l1'.* knows none") as caught:
        next(
            training.epochs(
                assembly.seeded_mixture(chosen),
                training.Training(
                    chosen.joint,
                    chosen.joint.attack,
                    digits.train[:32],
                    digits.val,
                    chosen.data.augment,
                ),
            )
        )
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def judged(digits: Data) -> Evaluation:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threat, "ThreatConfig", Linf | L2 | L1)
        model = assembly.seeded_mixture(recipe())
        part = digits.test[:24]
        return evaluate(
            model, part.images, part.labels, norm="l1", eps=EPS,
            attacks=["fgsm", "pgd", "mixture", "sweeps"],
        )  # fmt: skip


def test_an_evaluation_under_it(judged: Evaluation) -> None:
    """Every stage asserts that what it made is within, by `distance`."""
    found = judged.to_json()
    assert (found["norm"], found["eps"]) == ("l1", EPS)
    assert {"fgsm", "pgd", "gate-only", "transfer"} <= found["robust"].keys()
    assert found["worst_case"] <= min(found["robust"].values())
    assert [size for size, _ in found["sweeps"]["eps"]][1:4] == [EPS / 8, EPS / 4, EPS / 2]


def test_early_exit_stays_within_it(added: None) -> None:
    model, x = mixture(), images(40)
    chunk = Chunk(x, labels(x), (0, 0))
    everything = torch.ones(40, dtype=torch.bool)
    found = until_broken(ascending(model, chunk.y), chunk, everything, "it", threat=L1(eps=EPS))
    assert within(found.x, chunk.x)
    assert len(set(found.step.tolist())) > 2  # images have left at several steps


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.rand(64, 10, generator=draw) - 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ self.weight


def test_autoattack_is_asked_in_the_same_norm(
    digits: Data, added: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A linear model breaks no nearer than the nearest plane is in l1, and would in linf."""
    whole, squares = AutoAttack.run_standard_evaluation, []

    def quick(library: AutoAttack, x: Tensor, y: Tensor, **options: int) -> object:
        library.square.n_queries = 50  # of 5,000
        squares.append(type(library.square))
        return whole(library, x, y, **options)

    monkeypatch.setattr(AutoAttack, "run_standard_evaluation", quick)
    part, linear = digits.test[:4], Linear()
    with torch.no_grad():
        z = linear(part.pixels())
        gaps = z.amax(1, keepdim=True) - z
        planes = linear.weight[:, z.argmax(1)].T[:, None] - linear.weight.T
        far = (gaps / planes.abs().amax(2)).masked_fill(gaps == 0, torch.inf).amin(1)
    eps = far.max().item() * 0.99
    found = evaluate(
        linear, part.images, z.argmax(1), attacks=["autoattack"], norm="l1", eps=eps, fast=True
    )
    assert set(squares) == {SquareAttack}  # the one in windows is for boxes
    left = found.verdicts["autoattack"]
    assert left[far.argmax()]
    assert not left[far < eps / 3].any()  # that [0,1] is in the way is allowed for


def test_an_attack_without_the_norm_is_refused(
    monkeypatch: pytest.MonkeyPatch, added: None
) -> None:
    monkeypatch.setattr(L1, "library", None)
    with pytest.raises(UserError, match=r"^attack autoattack: there is none in norm l1$"):
        Settings(("fgsm", "autoattack"), L1(eps=EPS))


def evidence(version: int, **report: object) -> Evidence:
    table = pa.table({"label": [1] * 400, "prediction": [1] * 400})
    return Evidence(version, "abc", {**REPORT, "worst_case": 1.0, **report}, table)


def test_promotion_compares_no_two_threat_models() -> None:
    champion = evidence(1, norm="linf", eps=0.5)
    reason = str(not_better(evidence(2, norm="l1", eps=0.5), champion))
    assert "champion 1 was judged with other norm: evaluate it again" in reason
    report = {**REPORT, "norm": "linf", "recipe_norm": "l1"}
    assert lacks(report) == ["evaluated in norm linf, the recipe's is l1"]
