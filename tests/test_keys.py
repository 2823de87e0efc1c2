"""Every field of a configuration changes the keys, or stands here with the reason why not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from fnmatch import fnmatch
from typing import Any, Literal

import pytest

from fmoe import config, data
from fmoe.attacks import threat
from fmoe.attacks.threat import Linf
from fmoe.config import Config, fingerprint
from fmoe.data import Info
from fmoe.training.expert_store import expert_key
from fmoe.training.joint import joint_key
from tests.edited import edit_info, identity
from tests.settings_walk import Change, changes

MEMBER = ("own", 0)
BASE = config.load(
    "digits-whole",
    [
        "experts.backbone.width=4",
        "experts.roles={own: {count: 2, attack: {kind: fgsm}}, other: {attack: {kind: pgd}}}",
    ],
)
HOW = {
    "parallel.*": "who computes what: a run may go on with other workers, otherwise shared",
    "checkpoint.*": "how much a death costs",
}
NOT_THE_EXPERTS = {
    "gate": "experts are trained before there is a gate",
    "gate.*": "the same",
    "mixing": "combines experts that are finished",
    "confidence*": "combines experts that are finished",
    "joint.*": "the joint phase begins with finished experts",
    "evaluate.*": "a verdict changes no weights",
    "experts.start": "what else an expert may start from is not its own training",
    "experts.origin*": "another network's, from which this one is not forked",
    "experts.trunk*": "experts of a trunk are not trained apart",
    "experts.branch*": "the same",
    "experts.roles": "a role more is no role of its own",
    "experts.roles.other*": "other roles' experts are trained apart",
    "experts.roles.own.count": "a search over counts shares its experts; siblings differ by index",
    **HOW,
}
NOT_THE_RUNS = HOW | {
    "evaluate.*": "a verdict changes no weights: a finished phase may be judged anew"
}


class Other(Linf):
    """So that a norm can be another."""

    norm: Literal["other"] = "other"  # type: ignore[assignment]


@pytest.fixture(scope="module")
def all_changes() -> list[Change]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threat, "ThreatConfig", Linf | Other)
        return list(changes(BASE))


def of_expert(settings: Config) -> str:
    return expert_key(settings, MEMBER, identity(val_images=settings.data.val_images))


def of_run(settings: Config) -> str:
    return joint_key(settings, identity(val_images=settings.data.val_images))


def of_name(settings: Config) -> str:
    """What a run is called by where it is given no name."""
    return fingerprint(settings.deciding())


def test_the_walk_goes_everywhere(all_changes: list[Change]) -> None:
    """Every leaf of what is there, every member of the unions, those of roles and lists too."""
    paths = {change.path for change in all_changes}
    leaves = {path for path in BASE.flat() if not path.endswith("kind")}
    assert leaves <= paths | {"experts.roles.own.backbone", "experts.roles.other.backbone"}
    assert {
        "experts.roles.own.backbone.stem",
        "experts.roles.own.attack.of.1.steps",
        "joint.attack.of.2.restarts",
        "joint.loss.beta",
        "joint.optimizer.sgd_lr",
        "joint.optimizer.schedule.milestones",
        "experts.train.validation.attack.weights",
        "gate.temperature",
    } <= paths
    assert {k for change in all_changes for k in change.kinds} >= {
        *("conv", "resnet", "linear", "uniform", "top1", "clean", "fgsm", "nfgsm", "pgd", "mix"),
        *("sgd", "muon", "cyclic", "piecewise", "constant", "cross_entropy", "trades", "resnet18"),
    }


@pytest.mark.parametrize(
    ("key", "exempt"),
    [(of_expert, NOT_THE_EXPERTS), (of_run, NOT_THE_RUNS), (of_name, HOW)],
    ids=["expert", "run", "name"],
)
def test_a_field_changes_the_key_or_is_on_the_list(
    key: Callable[[Config], str], exempt: dict[str, str], all_changes: list[Change]
) -> None:
    unseen: list[str] = []
    seen: list[str] = []
    for change in all_changes:
        listed = any(fnmatch(change.path, pattern) for pattern in exempt)
        if (key(change.before) == key(change.after)) is not listed:
            (seen if listed else unseen).append(str(change))
    assert unseen == [], "changed, and the key is the same"
    assert seen == [], "on the list, and the key is another"


def test_the_lists_name_what_is_there(all_changes: list[Change]) -> None:
    paths = [change.path for change in all_changes]
    for pattern in NOT_THE_EXPERTS | NOT_THE_RUNS:
        assert any(fnmatch(path, pattern) for path in paths), pattern


OTHER: dict[type, Callable[[Any], Any]] = {
    tuple: lambda value: (*value[:-1], 2 * value[-1]),
    int: lambda value: value + 1,
}


@pytest.mark.parametrize("key", [of_expert, of_run])
@pytest.mark.parametrize("field", [field.name for field in fields(Info)])
def test_what_the_table_says_of_a_data_set_changes_the_key(
    field: str, key: Callable[[Config], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shape, classes, mean, std; how many images are cut out where the recipe does not say."""
    settings = config.load("digits-whole", ["data.val_images=null"])
    settings = settings.model_copy(update={"experts": BASE.experts})
    before, info = key(settings), data.info("digits")
    value = getattr(info, field)
    changed = OTHER[type(value)](value)
    assert changed != value
    edit_info(monkeypatch, **{field: changed})
    assert key(settings) != before


def test_a_backbone_counts_and_not_where_it_is_written() -> None:
    own = "experts.roles.own.backbone={kind: resnet18, width: 4}"
    tree = BASE.plain()
    config.put(tree, "experts.roles.own.backbone", {"width": 4}, "test")
    same = config.validate(tree, own)
    assert of_expert(same) == of_expert(BASE)
    config.put(tree, "experts.backbone.width", 8, "test")
    assert of_expert(config.validate(tree, "test")) == of_expert(BASE)
    assert of_run(config.validate(tree, "test")) != of_run(BASE)
