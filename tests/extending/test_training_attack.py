"""An attack to train against is added by a class and its name in `AttackConfig`.

It says itself what warm starts and the guard against catastrophic overfitting need to know.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from fmoe import assembly, attacks, training
from fmoe.attacks import Attack, ModelFn
from fmoe.config import Config
from fmoe.data import Data
from fmoe.errors import UserError
from fmoe.numerics.draw import Draw
from fmoe.schema import Drawn, Pixels
from fmoe.training import Epoch
from fmoe.training.warm_start import INT8_SCALE
from tests.conftest import MEMBER
from tests.extending.added import added
from tests.extending.document import section
from tests.extending.whole_way import few, joint_phase, latest, resumed, settings, whole_way

CODE = section("An attack to train against")
Walk = CODE.Walk


class Noise(Attack):
    """Random signs: a class that says nothing of itself but what it does."""

    kind: Literal["noise"] = "noise"
    eps: Drawn[Pixels] = 0.1

    def perturb(self, model: ModelFn, x: Tensor, y: Tensor, draw: Draw) -> Tensor:
        return (x + attacks.scalar(self.eps) * draw.noise(x).sign()).clamp(0, 1)


@pytest.fixture(scope="module", autouse=True)
def _attacks() -> Iterator[None]:
    with added(attacks, "AttackConfig", Walk), added(attacks, "AttackConfig", Noise):
        yield


WALK = "joint.attack={kind: walk, eps: [0.05, 0.1]}"
NOISE = "joint.attack={kind: noise, eps: 0.1}"
PGD = "joint.validation.attack={kind: pgd, eps: 0.1, steps: 2}"


def test_it_is_trained_against_resumed_saved_loaded_and_evaluated(
    digits: Data, tmp_path: Path
) -> None:
    chosen: Any = settings(WALK, "experts.roles.fgsm.attack={kind: walk}")
    assert chosen.joint.attack == Walk(eps=[0.05, 0.1])
    whole_way(chosen, few(digits), tmp_path)


def test_in_a_mix_it_is_drawn_from(digits: Data) -> None:
    mix = "joint.attack={kind: mix, of: [{kind: clean}, {kind: walk, eps: 0.1}]}"
    drawn = {type(settings(mix).joint.attack.sample(Draw(seed))) for seed in range(16)}
    assert drawn == {attacks.Clean, Walk}


# warm start


def test_a_warm_start_goes_on_from_its_perturbations(digits: Data, tmp_path: Path) -> None:
    """Kept in units of the eps that it was drawn with, and resumed with the same bits."""
    chosen = settings(WALK, "joint.warm_start=true", "data.augment={crop: 0, flip: false}")
    _, kept = resumed(chosen, few(digits), tmp_path)
    warm = latest(kept).families["warm"]
    assert warm["known"].all()
    # somewhere every image is as far away as it may be, for either eps
    assert (warm["kept"].abs().amax((1, 2, 3)) == INT8_SCALE).float().mean() > 0.5


def test_with_a_warm_start_it_trains_another_model(digits: Data, tmp_path: Path) -> None:
    states = []
    for warm in ("true", "false"):
        chosen = settings(WALK, f"joint.warm_start={warm}")
        folder, experts = tmp_path / warm, tmp_path / "experts"
        _, kept = joint_phase(chosen, few(digits), folder, experts=experts)
        states.append(latest(kept).model)
    assert not torch.equal(states[0]["experts.0.head.bias"], states[1]["experts.0.head.bias"])


@pytest.mark.parametrize(
    "attack",
    [NOISE, "joint.attack={kind: mix, of: [{kind: pgd}, {kind: noise}]}",
     "joint.attack={kind: nfgsm}"],
)  # fmt: skip
def test_a_warm_start_is_refused_for_an_attack_that_knows_none(attack: str, digits: Data) -> None:
    with pytest.raises(UserError, match=r"^warm_start: the attack .* knows none; set") as caught:
        run(settings(attack, "joint.warm_start=true"), digits)
    assert "\n" not in str(caught.value)


# the guard


def run(chosen: Config, digits: Data) -> list[Epoch]:
    data = few(digits)
    model: Any = assembly.seeded_expert(chosen, MEMBER, 0)
    return list(
        training.epochs(
            model,
            training.Training(
                chosen.joint, chosen.joint.attack, data.train, data.val, chosen.data.augment
            ),
        )
    )


@pytest.mark.parametrize("attack", [WALK, NOISE])
def test_training_against_it_is_guarded(
    attack: str, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([(0.4, 0.5), (0.1, 0.9), (0.5, 0.5)])

    def validate(*given: object) -> dict[str, float]:
        robust, fgsm = next(scores)
        return {"val_clean": 0.6, "val_robust": robust, "val_fgsm": fgsm}

    monkeypatch.setattr("fmoe.training.loop.validation_accuracies", validate)
    epochs = run(settings(attack, PGD), digits)
    assert ["overfitted" in epoch.metrics for epoch in epochs] == [False, True, False]


def test_judged_by_it_training_is_guarded(digits: Data) -> None:
    """It names the one-step attack whose accuracy is compared with its own."""
    epoch, *_ = run(settings("joint.validation.attack={kind: walk, eps: 0.1}"), digits)
    assert "val_fgsm" in epoch.metrics


def test_a_guard_is_refused_that_the_validation_attack_says_nothing_of(digits: Data) -> None:
    judged = "joint.validation.attack={kind: noise, eps: 0.1}"
    with pytest.raises(UserError, match=r"^guard: the validation attack Noise .* guard: false$"):
        run(settings(judged), digits)
    epoch, *_ = run(settings(judged, "joint.guard=false"), digits)
    assert "val_fgsm" not in epoch.metrics
