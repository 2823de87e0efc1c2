"""The frozen configuration tree: a recipe (YAML) with `path=value` overrides on top.

    config = load("cifar10", ["experts.backbone.width=16", "joint.epochs=3"])

Every part stands beside what it configures (attacks, gates, losses, optim, data); this file nests
them. What the paper does not publish is an option whose default is ours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PositiveInt, ValidationError, model_validator

from fmoe import documents
from fmoe.after_step import Following
from fmoe.attacks import FGSM, PGD, AttackConfig, Clean
from fmoe.attacks.threat import Norm, Threat, threat_model
from fmoe.config import format_1
from fmoe.config.kinds import kinds
from fmoe.data.augment import Augment
from fmoe.data.sets import info, names
from fmoe.documents import LARGEST_YAML, NotRead
from fmoe.errors import UserError, first_line
from fmoe.evaluation.stages import AttackName as AttackName
from fmoe.losses import CrossEntropy, LossConfig
from fmoe.models.experts import BackboneConfig, ResNet18Backbone
from fmoe.models.gates import Conv, GateConfig
from fmoe.models.mixture import Mixing
from fmoe.numerics.precision import Numerics, Precision
from fmoe.optim import SGD, OptimizerConfig
from fmoe.schema import Pixels, Spec

LONGEST = 500  # characters of a fault: a key or a value may have any length
Update = Literal["all", "heads", "gate"]
BatchNorm = Literal["local", "sync"]
RoleName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
DataName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
Member = tuple[str, int]
"""An expert: its role, and its index within the role."""


class DataConfig(Spec):
    name: DataName = "digits"
    """Recipes name one that is known here (see `validate`); a model of another can be read."""
    val_images: PositiveInt | None = None
    """Cut out of train for selection; each data set has a default."""
    train_images: PositiveInt | None = None
    """How many of the rest to train on, the same ones every time; null for all."""
    augment: Augment = Augment()


class Validation(Spec):
    """Selection after every epoch, on images of the validation split (never the test split)."""

    attack: AttackConfig = PGD(steps=10)
    images: PositiveInt | None = 1000
    """How many of the split; null for all."""


class Phase(Spec):
    """What one training phase needs; both phases run on the same epoch generator."""

    epochs: PositiveInt = 10
    batch_size: PositiveInt = 128
    optimizer: OptimizerConfig = SGD()
    loss: LossConfig = CrossEntropy()
    validation: Validation = Validation()
    patience: PositiveInt | None = None
    """Stop after so many epochs without a better validation figure; null: never."""
    crafting: Literal["eval", "train"] = "eval"
    """BatchNorm while adversarial images are made: running or batch statistics."""
    accumulate: PositiveInt = 1
    """Parts in which a worker takes its share of a batch, for less memory; BatchNorm's statistics
    are then each part's own."""
    warm_start: bool = False
    """Start an attack with a random start where the image's last adversary ended
    (arXiv 1912.11969)."""
    guard: bool = True
    """Go back to the last good epoch when catastrophic overfitting sets in."""
    after_step: Following = Field(default_factory=list)
    """What follows every step, such as a running average of the weights."""


class Role(Spec):
    """A group of experts that are trained against the same attack."""

    count: Annotated[int, Field(ge=0, le=64)] = 1
    attack: AttackConfig = Clean()
    backbone: BackboneConfig | None = None
    """Of its own; null: `experts.backbone`."""


def published_roles() -> dict[str, Role]:
    """One clean, four FGSM and four PGD experts, as in the paper; PGD's eps and step are ours."""
    return {
        "benign": Role(count=1, attack=Clean()),
        "fgsm": Role(count=4, attack=FGSM(eps=[i / 100 for i in range(1, 10)])),
        "pgd": Role(
            count=4, attack=PGD(eps=8 / 255, step_size=2 / 255, steps=[10, 20, 30, 40, 50])
        ),
    }


class Experts(Spec):
    backbone: BackboneConfig = ResNet18Backbone()
    roles: dict[RoleName, Role] = Field(default_factory=published_roles, min_length=1)
    train: Phase = Phase()

    @model_validator(mode="after")
    def _some_expert(self) -> Experts:
        if not any(role.count for role in self.roles.values()):
            raise ValueError("every role has count 0: a mixture needs an expert")
        return self

    @property
    def members(self) -> list[Member]:
        """(role, index within the role) of each expert, in the order of `model.experts`."""
        return [(name, i) for name, role in self.roles.items() for i in range(role.count)]

    def backbone_of(self, role: str) -> BackboneConfig:
        return self.roles[role].backbone or self.backbone


class Joint(Phase):
    """Experts and gate together on adversarial batches crafted through the whole mixture."""

    attack: AttackConfig = PGD()
    update: Update = "all"
    """What learns: everything, the gate with each expert's last layer, or the gate alone."""
    balance: Annotated[float, Field(ge=0, le=1e3)] = 0.0
    """Weight of KL(mean gate weights || uniform), the mean over each worker's share."""
    checkpointing: bool = False
    """Keep one expert's activations at a time, for a forward pass more (arXiv 1604.06174)."""
    batch_norm: BatchNorm = "local"
    """Statistics of each worker's share (as DDP does), or of the global batch."""


def default_attacks() -> list[AttackName]:
    return ["fgsm", "pgd"]


class Evaluate(Spec):
    """The protocol's settings; see `fmoe.evaluation`."""

    eps: Pixels = 8 / 255
    norm: Norm = "linf"
    attacks: list[AttackName] = Field(default_factory=default_attacks, min_length=1)
    images: PositiveInt | None = None
    """How many test images, from the first; null for all."""
    batch_size: PositiveInt = 250
    gate_collapse: Literal["stop", "report"] = "stop"
    """Whether a gate that gives nearly everything to one expert stops promotion."""

    @property
    def threat(self) -> Threat:
        return threat_model(self.norm, self.eps)


class Config(Spec):
    """One run."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    precision: Precision = "float32"
    """Of training's forward and backward passes. Losses, mixing and evaluation are float32."""
    deterministic: bool = False
    """On GPUs: kernels that give the same bits every time (CPUs always do), at some cost."""
    compile: bool = False
    """torch.compile of what adversarial images are made on; on GPUs as a CUDA graph."""
    data: DataConfig = DataConfig()
    experts: Experts = Experts()
    gate: GateConfig = Conv()
    mixing: Mixing = "probabilities"
    joint: Joint = Joint()
    evaluate: Evaluate = Evaluate()

    @model_validator(mode="after")
    def _possible(self) -> Config:
        if self.joint.update == "gate" and self.gate.kind == "uniform":
            raise ValueError("joint.update: gate, but gate.kind: uniform has nothing to learn")
        if self.data.name in names():
            height = info(self.data.name).shape[1]
            if self.data.augment.crop >= height:
                raise ValueError(f"data.augment.crop: must be below the images' {height} pixels")
        return self

    @property
    def numerics(self) -> Numerics:
        return Numerics(self.precision, self.deterministic, self.compile)

    def plain(self) -> dict[str, Any]:
        """The tree as JSON-like values; `Config.model_validate` reads it back."""
        return self.model_dump(mode="json")

    def flat(self) -> dict[str, str]:
        """Dotted path to value, for MLflow's params."""
        return {path: json.dumps(value).strip('"') for path, value in _leaves("", self.plain())}

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.plain(), sort_keys=False)


def _leaves(path: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        prefix = f"{path}." if path else ""
        return [leaf for key, part in value.items() for leaf in _leaves(f"{prefix}{key}", part)]
    return [(path, value)]


def fingerprint(value: Any) -> str:
    """sha256 of canonical JSON: the same for the same settings, whatever their order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def recipes() -> list[str]:
    folder = resources.files("fmoe") / "recipes"
    return sorted(file.name[:-5] for file in folder.iterdir() if file.name.endswith(".yaml"))


def recipe_name(recipe: str) -> str:
    return Path(recipe).stem


def load(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """A packaged recipe by name, or a YAML file by path, with `dotted.path=value` overrides.

    Raises `UserError` with the key's path and what would be allowed.
    """
    if recipe in recipes():
        text = (resources.files("fmoe") / "recipes" / f"{recipe}.yaml").read_text()
    elif Path(recipe).is_file():
        text = read_text(Path(recipe))
    else:
        raise UserError(
            f"unknown recipe {recipe!r}: there are {', '.join(recipes())}; or give a YAML file"
        )
    tree = parse_yaml(text, recipe)
    if "recipe" in tree:
        tree = derived(tree, recipe)
    refuse_moved(tree, recipe)
    for override in overrides:
        _set(tree, override)
        refuse_moved(tree, f"--set {override}")
    return validate(tree, recipe)


def derived(tree: dict[str, Any], source: str) -> dict[str, Any]:
    """The tree of a file that names another `recipe` and what it `set`s of it, by dotted path."""
    base, changes = tree["recipe"], tree.get("set", {})
    if tree.keys() - {"recipe", "set"} or not isinstance(changes, dict):
        raise UserError(f"{source}: a recipe that starts from another has `recipe` and `set` only")
    if base not in recipes() or base == recipe_name(source):
        raise UserError(f"{source}: recipe: {base}: there are {', '.join(recipes())}")
    start = load(base).plain()
    for path, value in changes.items():
        put(start, str(path), value, f"{source}: set")
        refuse_moved(start, f"{source}: set")
    return start


def refuse_moved(tree: dict[str, Any], source: str) -> None:
    """Raises `UserError` for a key of an earlier fmoe, with its path of today."""
    told = format_1.moved(tree)
    if told is not None:
        raise UserError(f"{source}: {told}")


def read_text(path: Path) -> str:
    """A YAML file's text. Raises `UserError`, for a pipe or a file that is too long as well."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is no regular file")
        if path.stat().st_size > LARGEST_YAML:
            raise UserError(f"{path}: too long (at most {LARGEST_YAML} bytes are read)")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable ({first_line(error)})") from None


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        tree = documents.parse_yaml(text)
    except NotRead as error:
        raise UserError(f"{source}: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{source}: expected keys such as data, experts, gate, joint")
    return tree


def _set(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"--set {override}: expected path=value, such as joint.epochs=3")
    try:
        value = documents.parse_yaml(text)
    except NotRead as error:
        raise UserError(f"--set {override[:300]}: the value is {error}") from None
    put(tree, path.strip(), value, f"--set {override}")


def put(tree: dict[str, Any], path: str, value: Any, source: str) -> None:
    """Sets the value at a dotted path, in place; list items are numbers, as joint.attack.of.1.eps.

    Another `kind` keeps of its neighbours those that it knows. Raises `UserError`, which starts
    with `source`, where the path cannot be one.
    """
    keys = path.split(".")
    if not all(keys):
        raise UserError(f"{source}: expected path=value, such as joint.epochs=3")
    at: Any = tree
    for key in keys[:-1]:
        if isinstance(at, list):
            at = at[_index(at, key, source)]
        else:
            if not isinstance(at.get(key), dict | list):
                at[key] = {}
            at = at[key]
        if not isinstance(at, dict | list):
            raise UserError(f"{source}: {key} has no keys below it")
    if isinstance(at, list):
        at[_index(at, keys[-1], source)] = value
        return
    if keys[-1] == "kind" and isinstance(value, str):
        known = kinds(Config, tree, keys[:-1])
        for key in at.keys() - known[value].model_fields.keys() if value in known else ():
            del at[key]
    at[keys[-1]] = value


def get(tree: Any, path: str) -> Any:
    """The value at a dotted path. Raises `KeyError` where there is none."""
    for key in path.split("."):
        if isinstance(tree, list) and key.isdigit() and int(key) < len(tree):
            tree = tree[int(key)]
        elif isinstance(tree, dict):
            tree = tree[key]
        else:
            raise KeyError(path)
    return tree


def _index(at: list[Any], key: str, source: str) -> int:
    if not key.isdigit() or int(key) >= len(at):
        raise UserError(f"{source}: {key} is no index of a list of {len(at)}")
    return int(key)


def validate(tree: dict[str, Any], source: str) -> Config:
    """A checked `Config` of a data set that is known here.

    Raises `UserError` naming each faulty key's path.
    """
    config = parsed(tree, source)
    if config.data.name not in names():
        there = ", ".join(names())
        raise UserError(
            f"{source}: data.name: unknown data set {config.data.name!r} (there are: {there})"
        )
    return config


def parsed(tree: dict[str, Any], source: str) -> Config:
    """The same, of any data set: what a model was trained on need not be here."""
    refuse_moved(tree, source)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{source}: {faults(error, tree)}") from None


def faults(error: ValidationError, tree: Any) -> str:
    """The first three, each with its key's path."""
    found = [_fault(fault["loc"], fault["type"], fault["msg"], tree) for fault in error.errors()]
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return f"{'; '.join(found[:3])}{more}"


def _fault(loc: tuple[int | str, ...], kind: str, message: str, tree: Any) -> str:
    path = _path(loc, tree)
    if kind == "missing":
        path = f"{path}.{loc[-1]}" if path else str(loc[-1])
    path = path if len(path) <= LONGEST else f"…{path[-LONGEST:]}"
    message = message.removeprefix("Value error, ")
    message = message if len(message) <= LONGEST else f"{message[:LONGEST]}…"
    return f"{path}: {message}" if path else message


def _path(loc: tuple[int | str, ...], tree: Any) -> str:
    """The key's path as the user wrote it: pydantic adds the names of union members."""
    keys: list[str] = []
    for key in loc:
        inside = isinstance(tree, dict) and key in tree
        if inside or (isinstance(tree, list) and isinstance(key, int) and key < len(tree)):
            tree = tree[key]
            keys.append(str(key))
    return ".".join(keys)
