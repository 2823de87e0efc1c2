"""Recipes, overrides, and messages that name the key's path and what would be allowed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fmoe import config
from fmoe.attacks import FGSM, PGD, Clean, Mix
from fmoe.config import Config, Experts, Role, fingerprint
from fmoe.errors import UserError
from fmoe.models.backbones import ResNet18Backbone


@pytest.mark.parametrize("recipe", config.recipes())
def test_every_packaged_recipe_loads(recipe: str) -> None:
    loaded = config.load(recipe)
    assert loaded.experts.members
    assert Config.model_validate(loaded.plain()) == loaded


def test_the_demos_recipes_are_there() -> None:
    assert {"digits", "cifar10-small"} <= set(config.recipes())


def test_default_pool_is_the_papers() -> None:
    default = Config()
    # Divided We Fall: one clean expert, four of random-eps FGSM, four of random-steps PGD
    assert {name: role.count for name, role in default.experts.roles.items()} == {
        "benign": 1,
        "fgsm": 4,
        "pgd": 4,
    }
    assert default.experts.members == [
        ("benign", 0),
        *[("fgsm", i) for i in range(4)],
        *[("pgd", i) for i in range(4)],
    ]
    attacks = {name: role.attack for name, role in default.experts.roles.items()}
    assert attacks["benign"] == Clean()
    assert attacks["fgsm"] == FGSM(eps=[0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09])
    assert attacks["pgd"] == PGD(eps=8 / 255, step_size=2 / 255, steps=[10, 20, 30, 40, 50])
    assert default.experts.backbone == ResNet18Backbone(width=64)
    assert default.evaluate.eps == 8 / 255
    assert (default.seed, default.mixing, default.gate.kind) == (0, "probabilities", "conv")
    assert default.joint.update == "all"


def test_empty_yaml_mapping_gives_the_defaults(tmp_path: Path) -> None:
    assert config.load(written(tmp_path, "{}")) == Config()


def test_a_recipe_may_start_from_another(tmp_path: Path) -> None:
    text = "recipe: digits\nset: {gate.kind: uniform, experts.roles.fgsm.count: 2}"
    found = config.load(written(tmp_path, text), ["seed=3"])
    own = ["gate.kind=uniform", "experts.roles.fgsm.count=2", "seed=3"]
    assert found == config.load("digits", own)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: nonesuch", "recipe: nonesuch: there are"),
        ("recipe: [digits]", "recipe: .* there are"),
        ("{recipe: digits, seed: 3}", "`recipe` and `set` only"),
        ("{recipe: digits, set: [1]}", "`recipe` and `set` only"),
        ("{recipe: digits, set: {joint.epoch: 3}}", "joint: unknown key epoch"),
    ],
)
def test_a_recipe_that_starts_from_another_is_checked(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        config.load(written(tmp_path, text))


def written(folder: Path, text: str) -> str:
    file = folder / "mine.yaml"
    file.write_text(text)
    return str(file)


def test_recipe_may_be_a_file(tmp_path: Path) -> None:
    loaded = config.load(written(tmp_path, "seed: 7\nexperts: {backbone: {width: 4}}\n"))
    assert (loaded.seed, loaded.experts.backbone) == (7, ResNet18Backbone(width=4))
    assert config.recipe_name(str(tmp_path / "mine.yaml")) == "mine"
    assert config.recipe_name("digits") == "digits"


def test_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "path", "expected"),
    [
        ("seed=3", "seed", 3),
        ("joint.epochs=3", "joint.epochs", 3),
        ("joint.optimizer.lr=1e-2", "joint.optimizer.lr", 0.01),
        (" joint.epochs = 3 ", "joint.epochs", 3),
        ("evaluate.eps=8/255", "evaluate.eps", 8 / 255),
        ("evaluate.attacks=[fgsm, pgd50]", "evaluate.attacks", ["fgsm", "pgd50"]),
        ("evaluate.images=null", "evaluate.images", None),
        ("data.augment.flip=true", "data.augment.flip", True),
        ("data.augment={crop: 2}", "data.augment.crop", 2),
        ("gate={kind: linear, temperature: 2}", "gate.temperature", 2.0),
        ("joint.attack.weights.2=5", "joint.attack.weights", [1, 1, 5]),
        ("joint.attack.of.1.eps=4/255", "joint.attack.of.1.eps", 4 / 255),
        ("joint.attack.of.1.eps.0=4/255", "joint.attack.of.1.eps", [4 / 255, 0.1]),
        ("joint.attack.of.2.steps=[1, 2]", "joint.attack.of.2.steps", [1, 2]),
        ("experts.roles.pgd.count=0", "experts.roles.pgd.count", 0),
        ("experts.roles.noisy.count=2", "experts.roles.noisy.count", 2),
        ("joint.loss.kind=trades", "joint.loss.beta", 6.0),
        ("experts.train.patience=2", "experts.train.patience", 2),
    ],
)
def test_overrides(override: str, path: str, expected: object) -> None:
    value: Any = config.load("digits", [override]).plain()
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    assert value == expected


def test_later_overrides_win_and_the_rest_stays() -> None:
    loaded = config.load("digits", ["joint.epochs=3", "joint.epochs=4"])
    assert loaded.joint.epochs == 4
    assert loaded.joint.batch_size == config.load("digits").joint.batch_size


@settings(deadline=None, max_examples=50)
@given(numerator=st.integers(0, 255))
def test_eps_may_be_written_in_255ths(numerator: int) -> None:
    tree = {"evaluate": {"eps": f"{numerator}/255"}}
    assert config.validate(tree, "mine").evaluate.eps == numerator / 255


@settings(deadline=None, max_examples=50)
@given(seed=st.integers())
def test_seeds_are_within_31_bits(seed: int) -> None:
    if 0 <= seed < 2**31:
        assert config.validate({"seed": seed}, "mine").seed == seed
    else:
        with pytest.raises(UserError, match="mine: seed: Input should be"):
            config.validate({"seed": seed}, "mine")


@settings(deadline=None, max_examples=25)
@given(
    place=st.sampled_from([("", Config), ("experts", Experts), ("experts.roles.pgd", Role)]),
    key=st.from_regex(r"[a-z][a-z_]{0,15}", fullmatch=True),
)
def test_unknown_keys_are_refused_with_path_and_what_is_allowed(
    place: tuple[str, type[Config | Experts | Role]], key: str
) -> None:
    path, spec = place
    assume(key not in spec.model_fields)
    allowed = ", ".join(spec.model_fields)
    message = f"{path}: unknown key {key} (allowed: {allowed})".removeprefix(": ")
    with pytest.raises(UserError) as caught:
        config.load("digits", [f"{path}.{key}=1".removeprefix(".")])
    assert str(caught.value) == f"digits: {message}"


FAULTS = {
    # wrong kind
    "joint.epochs=many": "joint.epochs: Input should be a valid integer",
    "joint.epochs=2.5": "joint.epochs: Input should be a valid integer",
    "seed.deep=1": "seed: Input should be a valid integer",
    "data=null": "data: Input should be a valid dictionary",
    "experts.roles=[1]": "experts.roles: Input should be a valid dictionary",
    "joint.attack.of=3": "joint.attack.of: Input should be a valid list",
    "joint.attack=5": "joint.attack: Input should be",
    "evaluate.attacks=[nosuch]": "evaluate.attacks.0: unknown attack 'nosuch' (there are: fgsm,",
    "gate.kind=nosuch": "'conv', 'resnet', 'linear', 'features', 'uniform', 'top1'",
    "joint.attack.of.1.kind=nosuch": "joint.attack.of.1: Input tag 'nosuch'",
    # out of range
    "experts.backbone.width=1000000000": "experts.backbone.width: Input should be less than or",
    "experts.backbone.width=0": "experts.backbone.width: Input should be greater than or equal to",
    "experts.backbone.kind=vit": "experts.backbone: Input tag 'vit'",
    "experts.roles.pgd.backbone={width: 0}": "experts.roles.pgd.backbone.width: Input should be",
    "experts.roles.pgd.count=65": "experts.roles.pgd.count: Input should be less than or",
    "joint.epochs=0": "joint.epochs: Input should be greater than 0",
    "joint.optimizer.lr=0": "joint.optimizer.lr: Input should be greater than 0",
    "joint.optimizer.lr=.nan": "joint.optimizer.lr: Input should be",
    "joint.optimizer.momentum=1": "joint.optimizer.momentum: Input should be less than 1",
    "joint.balance=-1": "joint.balance: Input should be greater than or equal to 0",
    "joint.awp=1": "joint.awp: Input should be less than 1",
    "joint.own=-1": "joint.own: Input should be greater than or equal to 0",
    "gate.temperature=0": "gate.temperature: Input should be greater than 0",
    "gate.temperature=.inf": "gate.temperature: Input should be",
    "data.augment.crop=17": "data.augment.crop: Input should be less than or equal to 16",
    "joint.sizes=[3]": "joint.sizes.0: Input should be greater than or equal to 4",
    "experts.train.sizes=[9]": "experts.train.sizes: images have 8 pixels a side",
    "data.val_images=0": "data.val_images: Input should be greater than 0",
    # pixels
    "evaluate.eps=2": "evaluate.eps: must be at most 1 in linf",
    "evaluate.eps=256/255": "evaluate.eps: must be at most 1 in linf",
    "evaluate.eps=-1/255": "evaluate.eps: Input should be greater than or equal to 0",
    "evaluate.eps=8/0": "evaluate.eps: '8/0' is not a ratio such as 8/255",
    "evaluate.eps=a/b": "evaluate.eps: 'a/b' is not a ratio such as 8/255",
    "evaluate.eps=.nan": "evaluate.eps: Input should be",
    "joint.attack.of.1.eps=[]": "joint.attack.of.1.eps: List should have at least 1 item",
    "joint.attack.of.2.steps=0": "joint.attack.of.2.steps: Input should be greater than 0",
    # what does not go together
    "joint.attack.weights=[1]": "joint.attack: 1 weights for 3 attacks in `of`",
    "joint.attack.weights=[0, 0, 0]": "joint.attack: weights must not all be 0",
    "joint.attack.weights.0=-1": "joint.attack.weights.0: Input should be greater than",
    "joint.attack.of=[]": "joint.attack.of: List should have at least 1 item",
    "experts.roles={}": "experts.roles: Dictionary should have at least 1 item",
    "experts.roles={a: {count: 0}}": "experts: every role has count 0",
    "experts.roles.Bad Name.count=1": "experts.roles.Bad Name: String should match pattern",
    # the override itself
    "seed": "--set seed: expected path=value, such as joint.epochs=3",
    "=3": "--set =3: expected path=value",
    "a..b=3": "--set a..b=3: expected path=value",
    "seed=[": "--set seed=[: the value is not YAML",
    "joint.attack.of.7.eps=0.1": "7 is no index of a list of 3",
    "joint.attack.of.².eps=0.1": "² is no index of a list of 3",
    f"joint.attack.of.{'9' * 5000}.eps=0.1": f"{'9' * 20} is no index of a list of 3",
    "joint.attack.of.-1.eps=0.1": "-1 is no index of a list of 3",
    "joint.attack.of.first.eps=0.1": "first is no index of a list of 3",
    "joint.attack.weights.0.deep=1": "0 has no keys below it",
}


MOVED = {
    "experts.width=8": "experts.width: is now experts.backbone.width",
    "experts.backbone=resnet18": "experts.backbone: is now a kind and its fields: {kind: resnet18}",
    "experts.backbone=resnet18-patch": "and its fields: {kind: resnet18, stem: patch}",
}
"""Keys of fmoe 0.1.0."""


@pytest.mark.parametrize("override", MOVED)
def test_keys_that_moved_are_refused_with_their_new_path(override: str, tmp_path: Path) -> None:
    path, _, value = override.partition("=")
    key, new = path.removeprefix("experts."), "experts.backbone.width=4"
    recipe = written(tmp_path, f"experts: {{{key}: {value}}}")
    derived = tmp_path / "derived.yaml"
    derived.write_text(f"recipe: digits\nset: {{{path}: {value}}}")
    for source, overrides, told in (
        ("digits", [override, new], f"--set {override}"),
        (recipe, [new], recipe),
        (str(derived), [new], f"{derived}: set"),
    ):
        with pytest.raises(UserError, match=re.escape(MOVED[override])) as caught:
            config.load(source, overrides)
        assert str(caught.value).startswith(f"{told}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", FAULTS)
def test_faults_name_the_keys_path(override: str) -> None:
    with pytest.raises(UserError, match=re.escape(FAULTS[override])) as caught:
        config.load("digits", [override])
    assert "\n" not in str(caught.value)


def test_a_gate_that_cannot_learn_cannot_be_all_that_learns() -> None:
    with pytest.raises(UserError, match=r"joint\.update: gate, but gate\.kind: uniform"):
        config.load("digits", ["joint.update=gate", "gate={kind: uniform}"])


def test_many_faults_are_counted() -> None:
    overrides = [
        "seed=-1",
        "joint.epochs=0",
        "experts.backbone.width=0",
        "evaluate.eps=2",
        "mixing=sum",
    ]
    with pytest.raises(UserError, match=r"and 2 more"):
        config.load("digits", overrides)


def test_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown recipe 'nosuch': there are .*digits.*YAML file"):
        config.load("nosuch")


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text", "3"])
def test_yaml_that_is_no_mapping_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mine\.yaml: expected keys such as data, experts"):
        config.load(written(tmp_path, text))


@pytest.mark.parametrize("text", ["a: [", "a: b: c", "\tseed: 1", "!!python/object:os.system {}"])
def test_what_is_no_yaml_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mine\.yaml: not YAML") as caught:
        config.load(written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00seed")
    with pytest.raises(UserError, match=r"mine\.yaml: not readable"):
        config.load(str(tmp_path / "mine.yaml"))


ATTACKS: st.SearchStrategy[Clean | FGSM | PGD | Mix] = st.deferred(
    lambda: st.one_of(
        st.just(Clean()),
        st.builds(FGSM, eps=st.floats(0, 1), random_start=st.booleans()),
        st.builds(
            PGD,
            eps=st.lists(st.floats(0, 1), min_size=1, max_size=3),
            steps=st.integers(1, 99) | st.lists(st.integers(1, 99), min_size=1, max_size=3),
        ),
        st.builds(Mix, of=st.lists(ATTACKS, min_size=1, max_size=2)),
    )
)


@settings(deadline=None, max_examples=40)
@given(attack=ATTACKS, seed=st.integers(0, 2**31 - 1), count=st.integers(1, 64))
def test_plain_and_yaml_round_trips(
    attack: Clean | FGSM | PGD | Mix, seed: int, count: int
) -> None:
    experts = Experts(roles={"some": Role(count=count, attack=attack)})
    made = Config(seed=seed, experts=experts)
    assert Config.model_validate(made.plain()) == made
    assert Config.model_validate(json.loads(json.dumps(made.plain()))) == made
    assert Config.model_validate(yaml.safe_load(made.to_yaml())) == made


def test_written_yaml_loads_as_a_recipe(tmp_path: Path) -> None:
    recipe = config.load("digits", ["seed=5", "joint.attack.of.1.eps=4/255"])
    assert config.load(written(tmp_path, recipe.to_yaml())) == recipe


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def backwards(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: backwards(part) for key, part in reversed(value.items())}
    return [backwards(part) for part in value] if isinstance(value, list) else value


@settings(deadline=None, max_examples=50)
@given(value=JSON)
def test_fingerprint_does_not_depend_on_the_keys_order(value: object) -> None:
    assert fingerprint(backwards(value)) == fingerprint(value)


def test_fingerprint_depends_on_values_and_lists_order() -> None:
    values: list[Any] = [{"a": 1}, {"a": 2}, {"b": 1}, {"a": [1, 2]}, {"a": [2, 1]}, {"a": "1"}]
    assert len({fingerprint(value) for value in values}) == 6
    # printf '{"a": 1}' | sha256sum
    golden = "f9d86028c6e0d64e225186f96acb69338b2c59764df79162107f5c4bb34d1310"
    assert fingerprint({"a": 1}) == golden


def test_flat_has_dotted_keys_and_short_values() -> None:
    flat = config.load("digits-whole", ["experts.backbone.width=4", "data.val_images=null"]).flat()
    assert flat["experts.backbone.width"] == "4"
    assert flat["experts.roles.fgsm.count"] == "4"
    assert flat["data.name"] == "digits"
    assert flat["data.val_images"] == "null"
    assert flat["data.augment.flip"] == "false"
    assert flat["joint.attack.weights"] == "[1.0, 1.0, 2.0]"
    assert all(isinstance(value, str) for value in flat.values())


def test_members_leave_out_roles_without_experts() -> None:
    loaded = config.load("digits", ["experts.roles.fgsm.count=0", "experts.roles.pgd.count=2"])
    assert loaded.experts.members == [("benign", 0), ("pgd", 0), ("pgd", 1)]
