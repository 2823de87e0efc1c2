"""A model folder is complete: nothing outside of it changes an output. Those of 0.1.0 are read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import fmoe
from fmoe import assembly, config, model_folder
from fmoe.config import Config, format_1
from fmoe.data.facts import Facts
from fmoe.errors import UserError
from fmoe.models.backbones import ResNet18Backbone
from fmoe.models.mixture import Mixture
from fmoe.storage.folder import Folder
from pipelines.cli import main
from pipelines.data_claim import check_images
from tests.conftest import SMALL
from tests.edited import edit_info
from tests.networks import settled

OLD = Path(__file__).parent / "format_1"
"""Two width-1 experts of `resnet18-patch` as fmoe 0.1.0 wrote them, and their answer to `RAMP`."""
RAMP = torch.linspace(0, 1, 64).view(1, 1, 8, 8)
MINE = Facts((3, 12, 20), ("cat", "dog"), (0.5, 0.25, 0.75), (0.5, 0.125, 0.25))
"""Of a data set that fmoe has never heard of."""


def outputs(model: torch.nn.Module, x: Tensor = RAMP) -> Tensor:
    with torch.no_grad():
        return model(x)  # type: ignore[no-any-return]


def save(folder: Path, settings: Config, facts: Facts | None = None) -> Mixture:
    """An untrained model with statistics of its own, and its folder."""
    torch.manual_seed(0)
    model = assembly.mixture(settings, facts)
    settled(model)
    model_folder.save_model(
        Folder.at(folder),
        model.state_dict(),
        settings,
        data_digest="abc",
        metrics={},
        facts=facts,
    )
    return model


def predicted(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The label that `model` in the folder gives to `a.png`."""
    with pytest.raises(SystemExit, match="0"):
        main(["predict", str(folder / "model"), str(folder / "a.png"), "--json"])
    (found,) = json.loads(capsys.readouterr().out.splitlines()[-1])["predictions"]
    label: str = found["label"]
    return label


def edit_table(monkeypatch: pytest.MonkeyPatch) -> None:
    edit_info(monkeypatch, mean=(0.9,), std=(0.1,), classes=tuple("abcdefghij"))


def test_an_edited_table_changes_no_verified_models_outputs(
    tmp_path: Path, small: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = outputs(save(tmp_path, small))
    edit_table(monkeypatch)
    assert torch.equal(outputs(fmoe.load(str(tmp_path))), expected)
    assert not torch.allclose(outputs(settled(assembly.seeded_mixture(small))), expected)
    card = model_folder.read_card(Folder.at(tmp_path))
    assert card["classes"] == list("0123456789")
    assert (card["mean"], card["std"]) == ([0.3053], [0.3760])


def test_labels_are_those_of_the_folder(
    tmp_path: Path,
    small: Config,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(tmp_path / "model", small)
    edit_table(monkeypatch)
    Image.new("L", (8, 8), 99).save(tmp_path / "a.png")
    assert predicted(tmp_path, capsys) in "0123456789"


@pytest.fixture
def mine() -> Config:
    tree = config.load("digits-whole", SMALL).plain()
    tree["data"]["name"] = "mine"
    return config.validate(tree, "test")


def test_a_model_of_an_unknown_data_set_is_loaded_and_predicts(
    tmp_path: Path, mine: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save(tmp_path / "model", mine, MINE)
    x = torch.rand(3, *MINE.shape)
    loaded, found, card = model_folder.load_model(Folder.at(tmp_path / "model"))
    assert torch.equal(outputs(loaded, x), outputs(model, x))
    assert outputs(loaded, x).shape == (3, 2)
    assert found == mine
    assert model_folder.facts_of(card) == MINE
    Image.new("RGB", (20, 12), (10, 200, 30)).save(tmp_path / "a.png")
    assert predicted(tmp_path, capsys) in MINE.classes


def test_what_a_recipe_names_must_be_there(mine: Config, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(mine.to_yaml())
    assert config.load(str(tmp_path / "mine.yaml")) == mine
    with pytest.raises(UserError, match="unknown data set 'mine'"):
        check_images(mine, None)
    with pytest.raises(UserError, match="unknown data set 'mine'"):
        assembly.facts_of(mine)


# of 0.1.0


@pytest.mark.parametrize("edited", [False, True], ids=["as it was", "table edited since"])
def test_a_folder_of_0_1_0_gives_what_it_gave(
    edited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if edited:
        edit_table(monkeypatch)
    model, settings, card = model_folder.load_model(Folder.at(OLD))
    expected = torch.tensor(json.loads((OLD / "outputs.json").read_text()))
    torch.testing.assert_close(outputs(model)[0], expected, rtol=0, atol=1e-5)
    assert settings.experts.backbone == ResNet18Backbone(width=1, stem="patch")
    assert model_folder.facts_of(card).mean == (0.3053,)


@pytest.mark.parametrize(
    ("experts", "backbone"),
    [
        ({"backbone": "resnet18", "width": 8}, ResNet18Backbone(width=8)),
        ({"backbone": "resnet18-patch", "width": 24}, ResNet18Backbone(width=24, stem="patch")),
        ({"width": 5}, ResNet18Backbone(width=5)),
        ({"backbone": "resnet18-patch"}, ResNet18Backbone(stem="patch")),
        ({"backbone": {"kind": "resnet18", "width": 3}}, ResNet18Backbone(width=3)),
        ({}, ResNet18Backbone()),
    ],
)
def test_a_configuration_of_0_1_0_in_todays_words(
    experts: dict[str, object], backbone: ResNet18Backbone
) -> None:
    tree = {"seed": 3, "experts": {**experts, "train": {"epochs": 2}}}
    found = config.validate(format_1.config(tree), "test")
    assert found.experts.backbone == backbone
    assert (found.seed, found.experts.train.epochs) == (3, 2)


IMPOSSIBLE = [
    ({"std": (0.0,)}, "std: Input should be greater than or equal to 0.0001"),
    ({"mean": (float("nan"),)}, "mean: Input should be a finite"),
    ({"mean": (0.5, 0.5)}, "mean: 2 values for 1 channels"),
    ({"shape": (1, 10**18, 8)}, "shape: Input should be less than or equal to 1024"),
    ({"classes": ("one",)}, "classes: Tuple should have at least 2 items"),
    ({"classes": ("one", "\x1b[2J")}, "classes: has characters that cannot be printed"),
]


@pytest.mark.parametrize(("edited", "message"), IMPOSSIBLE)
def test_impossible_facts_are_told_before_training(
    edited: dict[str, Any], message: str, small: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could be saved and not be loaded again."""
    edit_info(monkeypatch, **edited)
    with pytest.raises(UserError, match=f"^data set digits: .*{re.escape(message)}") as caught:
        assembly.seeded_mixture(small)
    assert "\n" not in str(caught.value)
