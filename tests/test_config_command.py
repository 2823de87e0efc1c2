"""`fmoe config`: values with where they come from, and schemas that editors check files by."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from fmoe import config
from fmoe.config.origins import annotated, explained
from fmoe.errors import UserError
from fmoe.tuning import search_space
from pipelines import schemas
from pipelines.cli import main

ROOT = Path(__file__).parent.parent
RECIPES, SPACES = ROOT / "fmoe" / "recipes", ROOT / "tune_spaces"


@pytest.mark.parametrize("recipe", config.recipes())
def test_what_is_shown_is_the_recipe(recipe: str, tmp_path: Path) -> None:
    settings, origins = explained(recipe)
    file = tmp_path / "shown.yaml"
    file.write_text("\n".join(annotated(settings, origins)))
    assert config.load(str(file)) == config.load(recipe)


def test_each_value_has_its_origin(tmp_path: Path) -> None:
    """A file that starts from a recipe that starts from another, and overrides on top."""
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: cifar10-small-wide\nset: {joint.epochs: 2, gate: {kind: linear}}\n")
    overrides = ["seed=7", "experts.roles.pgd.attack.steps=3", "joint.optimizer={kind: muon}"]
    settings, origins = explained(str(file), overrides)
    assert settings == config.load(str(file), overrides)
    wanted = {
        "seed": "--set seed=7",
        "experts.roles.pgd.attack.steps": "--set experts.roles.pgd.attack.steps=3",
        "experts.roles.pgd.attack.eps": "cifar10-small-pgd",
        "experts.roles.pgd.attack.norm": "default",
        "experts.backbone.width": "cifar10-small-wide",
        "data.name": "cifar10-small",
        "joint.epochs": str(file),
        "joint.batch_size": "cifar10-small",
        "gate.kind": str(file),
        "gate.temperature": "default",  # not what stood in the gate that was replaced
        "joint.optimizer.kind": "--set joint.optimizer={kind: muon}",
        "joint.optimizer.momentum": "default",
        "mixing": "cifar10-small",
        "compile": "default",
    }
    assert {path: origins[path] for path in wanted} == wanted


def test_origins_reach_into_lists() -> None:
    _, origins = explained("digits", ["joint.attack.of.1.eps=[0.05]"])
    assert origins["joint.attack.of.1.eps"] == "--set joint.attack.of.1.eps=[0.05]"
    assert origins["joint.attack.of.1.kind"] == "digits"
    assert origins["joint.attack.of.2.random_start"] == "default"


@pytest.mark.parametrize("given", [[], ["data"], ["config"]], ids=["fmoe", "data", "config"])
def test_a_command_without_its_part_shows_its_help(
    given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(given)
    shown = capsys.readouterr()
    assert (ended.value.code, shown.out) == (2, "")
    assert shown.err.startswith(f"Usage: {' '.join(['fmoe', *given])} ")
    assert len(shown.err.splitlines()) > 5


def test_people_and_scripts_are_shown_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["config", *arguments])
        assert not ended.value.code
        return capsys.readouterr().out

    tree = yaml.safe_load(shown("show", "digits", "--set", "seed=3"))
    answer = json.loads(shown("show", "digits", "--set", "seed=3", "--json"))
    assert tree == answer["config"] == config.load("digits", ["seed=3"]).plain()
    assert answer["origins"]["seed"] == "--set seed=3"
    assert json.loads(shown("schema")) == schemas.recipe()


# Schemas


@pytest.mark.parametrize("folder", [RECIPES, SPACES], ids=lambda folder: folder.name)
def test_every_packaged_file_names_its_schema_and_fits_it(folder: Path) -> None:
    files = sorted(folder.glob("*.yaml"))
    assert len(files) > 4
    for file in files:
        first = file.read_text().splitlines()[0]
        assert first.startswith("# yaml-language-server: $schema="), file
        schema = json.loads((folder / first.partition("=")[2]).read_text())
        jsonschema.validate(yaml.safe_load(file.read_text()), schema)


@pytest.mark.parametrize(
    ("file", "schema", "option"),
    [
        (RECIPES / "recipe.schema.json", schemas.recipe, ""),
        (SPACES / "space.schema.json", schemas.space, " --space"),
    ],
    ids=["recipe", "space"],
)
def test_packaged_schemas_are_those_of_the_code(file: Path, schema: Any, option: str) -> None:
    place = file.relative_to(ROOT)
    assert json.loads(file.read_text()) == schema(), f"fmoe config schema{option} > {place}"
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("recipe", config.recipes())
def test_what_is_shown_of_a_recipe_fits_the_schema(recipe: str) -> None:
    jsonschema.validate(config.load(recipe).plain(), schemas.recipe())


@pytest.mark.parametrize(
    "text",
    [
        "joint: {epoch: 3}",
        "joint: {epochs: many}",
        "gate: {kind: nonesuch}",
        "evaluate: {eps: -0.1}",
        "evaluate: {eps: 8 of 255}",
        "recipe: nonesuch",
        "{recipe: digits, joint: {epochs: 3}}",
    ],
)
def test_an_editor_refuses_what_the_command_refuses(text: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text), schemas.recipe())
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        config.load(str(file))


def test_an_editor_takes_a_ratio_and_says_what_a_field_means() -> None:
    jsonschema.validate({"evaluate": {"eps": "8/255"}}, schemas.recipe())
    ema = schemas.recipe()["$defs"]["Phase"]["properties"]["ema"]
    assert ema["description"].startswith("Short for `after_step: [{kind: ema, decay: …}]`")


def test_a_space_has_one_kind_of_values_a_path() -> None:
    both = {"recipe": "digits", "space": {"seed": {"int": [0, 1], "choice": [1]}}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(both, schemas.space())
    for name in search_space.spaces():
        text = (resources.files("tune_spaces") / f"{name}.yaml").read_text()
        jsonschema.validate(yaml.safe_load(text), schemas.space())
