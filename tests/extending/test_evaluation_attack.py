"""To add an attack of the evaluation: its function, and its name in the list of `stages`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fmoe import assembly, config
from fmoe.attacks.threat import Linf
from fmoe.errors import UserError
from fmoe.evaluation import Settings, evaluate, plan, stages
from fmoe.evaluation.stages import Attack
from pipelines.judging.opened import Opened
from pipelines.judging.run import Request, chosen
from tests.conftest import SMALL
from tests.extending.document import section

CODE = section("An attack of the evaluation")
corner = CODE.corner

BEFORE = stages.ATTACKS


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    place = [attack.name for attack in BEFORE].index("pgd50")
    new = Attack("corner", corner)
    monkeypatch.setattr(stages, "ATTACKS", (*BEFORE[:place], new, *BEFORE[place:]))


class Bright(nn.Module):
    """Class 1 where the first pixel is above a half: a corner of eps beyond it breaks an image."""

    def forward(self, x: Tensor) -> Tensor:
        s = 40 * (x[:, 0, 0, :1] - 0.5)
        return torch.cat([-s, s], 1)


def opened() -> Opened:
    """A mixture of the demo's recipe."""
    settings = config.load("digits-whole", SMALL)
    subject = assembly.MixtureSubject(settings, assembly.facts_of(settings))
    return Opened("", "", subject.build(), subject, (), "", wanted=settings.evaluate)


def both(name: str) -> tuple[str, ...]:
    """Stages by a recipe's spelling and by the command's."""
    recipe = config.load("digits-whole", [*SMALL, f"evaluate.attacks=[{name}]"])
    by_recipe = Settings(tuple(recipe.evaluate.attacks), recipe.evaluate.threat)
    by_command = chosen(Request(attacks=name), opened())
    assert by_recipe.stages == by_command.stages
    assert by_command.stages
    return by_recipe.stages


@pytest.mark.parametrize("name", stages.names())
def test_recipe_and_command_know_the_same_names(name: str) -> None:
    both(name)


def test_recipe_and_command_refuse_the_same_names() -> None:
    known = f"unknown attack 'corner' (there are: {', '.join(stages.names())})"
    with pytest.raises(UserError) as by_recipe:
        config.load("digits-whole", ["evaluate.attacks=[corner]"])
    assert str(by_recipe.value).endswith(known)
    with pytest.raises(UserError) as by_command:
        chosen(Request(attacks="corner"), opened())
    assert str(by_command.value) == known


def test_the_commands_help_names_them() -> None:
    text = (Path(__file__).parents[2] / "pipelines" / "evaluate.py").read_text()
    assert "With commas, of fgsm, pgd, pgd50, autoattack, mixture " in text
    assert all(name in text for name in stages.full())


def test_an_added_attack_is_named_in_a_recipe_and_on_the_command(added: None) -> None:
    assert both("corner") == ("corner",)
    assert both("corner,fgsm") == ("fgsm", "corner")


def test_it_runs_in_its_place_and_counts(added: None) -> None:
    pixels = torch.tensor([120, 126, 60, 200, 135, 126, 135, 126], dtype=torch.uint8)
    images = pixels[:, None, None, None].expand(8, 1, 2, 2).contiguous()
    labels = (pixels > 127).long()
    found = evaluate(Bright(), images, labels, attacks=["corner"], eps=0.1)
    told = json.loads(json.dumps(found.to_json()))
    assert told["stages"] == ["corner"]
    assert list(told["robust"]) == ["corner"]
    assert told["clean"] == 1
    assert 2 / 8 <= told["worst_case"] == told["robust"]["corner"] < 1
    assert "success_corner" in found.table().column_names
    assert "corner" in told["attack_seconds"]


def test_it_is_left_what_came_before_it(added: None) -> None:
    pixels = torch.tensor([120, 126, 60, 200], dtype=torch.uint8)
    images = pixels[:, None, None, None].expand(4, 1, 2, 2).contiguous()
    found = evaluate(Bright(), images, (pixels > 127).long(), attacks=["corner", "fgsm"], eps=0.1)
    assert list(found.robust) == ["fgsm", "corner"]
    assert found.columns["attacked.corner"].tolist() == [False, False, True, True]
    assert found.worst_case == 0.5


def test_order_is_the_lists() -> None:
    stages_in_order, skipped = plan(Bright(), Settings(stages.full()[::-1], Linf(eps=0.1)))
    assert stages_in_order == [
        *("clean", "fgsm", "pgd", "pgd50"),
        *("autoattack.apgd-ce", "autoattack.apgd-t", "autoattack.fab-t", "autoattack.square"),
        *("steps", "radius"),
    ]
    assert set(skipped.values()) == {"not a mixture of experts"}
    assert tuple(skipped) == tuple(a.name for a in BEFORE if a.group == stages.SUITE)
    assert stages.after_suite() == ("autoattack", "steps", "radius")
