"""The frozen configuration tree.

Every part stands beside what it configures (attacks, gates, losses, optim, data); this file nests
them. What the paper does not publish is an option whose default is ours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, assert_never

import yaml
from pydantic import Field, PositiveInt, ValidationInfo, field_validator, model_validator

from fmoe.after_step import AfterStepConfig, Ema, Following, each_once
from fmoe.attacks import FGSM, PGD, AttackConfig, Clean
from fmoe.attacks.threat import Norm, Threat, threat_model, within
from fmoe.data.augment import Augment
from fmoe.data.sets import info, names
from fmoe.evaluation.stages import AttackName
from fmoe.losses import CrossEntropy, LossConfig
from fmoe.models.backbones import BackboneConfig, ResNet18Backbone
from fmoe.models.branches import Branching, Shared
from fmoe.models.confidence import Calibrate, Confidence
from fmoe.models.gates import Conv, GateConfig
from fmoe.models.mixture import Mixing
from fmoe.numerics.precision import Numerics, Precision
from fmoe.optim import SGD, OptimizerConfig
from fmoe.schema import Length, Spec

Update = Literal["all", "heads", "gate"]
BatchNorm = Literal["local", "sync"]
RoleName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
DataName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
Member = tuple[str, int]
"""An expert: its role, and its index within the role."""
ORIGIN: Member = ("origin", 0)
"""The network that experts are forked from, which is none of them."""


class DataConfig(Spec):
    name: DataName = "digits"
    """Recipes name one that is known here (see `validate`); a model of another can be read."""
    val_images: PositiveInt | None = None
    """Cut out of train for selection; each data set has a default."""
    train_images: PositiveInt | None = None
    """How many of the rest to train on, the same ones every time; null for all."""
    stream: bool | None = None
    """Whether training images stay in files, of which it has a few in memory at a time, in an order
    of its own; null: from 2 GiB of pixels on."""
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
    sizes: list[Annotated[int, Field(ge=4)]] = Field(default_factory=list)
    """Pixels a side to which training images are scaled down, an epoch each, the last one for all
    that follow: small images first cost less (arXiv 2104.00298). None: as they are."""
    warm_start: bool = False
    """Start an attack with a random start where the image's last adversary ended
    (arXiv 1912.11969)."""
    awp: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Adversarial weight perturbation (arXiv 2004.05884): a step's gradient is taken at weights
    moved up the loss by this share of each layer's norm (0.005 there), for a pass more."""
    guard: bool = True
    """Go back to the last good epoch when catastrophic overfitting sets in."""
    ema: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Short for `after_step: [{kind: ema, decay: …}]`; null: no running average of the weights."""
    after_step: Following = Field(default_factory=list)
    """What follows every step, such as a running average of the weights."""

    @model_validator(mode="after")
    def _one_average(self) -> Self:
        each_once(self.following)
        return self

    @property
    def following(self) -> list[AfterStepConfig]:
        """`after_step`, and `ema` as a part of it."""
        return [*self.after_step, *([] if self.ema is None else [Ema(decay=self.ema)])]


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
    trunk: Shared | None = None
    """What all experts share; null: whole networks, as published."""
    branch: Branching | None = None
    """What each expert has of its own after the trunk; null: one block, as wide as the trunk."""
    start: Literal["pretrained", "forked", "fresh"] = "pretrained"
    """Each trained apart by its role's attack first, as published; all forked from one network that
    is trained by `train` against `origin` (with a trunk: that is its first stages); or with the
    joint phase alone."""
    origin: AttackConfig = Clean()
    """What the network is trained against that experts are forked from."""
    roles: dict[RoleName, Role] = Field(default_factory=published_roles, min_length=1)
    train: Phase = Phase()

    @model_validator(mode="after")
    def _some_expert(self) -> Experts:
        if not any(role.count for role in self.roles.values()):
            raise ValueError("every role has count 0: a mixture needs an expert")
        return self

    @model_validator(mode="after")
    def _one_trunk(self) -> Experts:
        if self.trunk is None:
            if self.branch is not None:
                raise ValueError("branch: experts without a trunk are whole networks; set trunk")
            return self
        if self.start == "pretrained":
            raise ValueError(
                "trunk: experts that share it are not trained apart; set start: fresh, or forked"
            )
        if not isinstance(self.backbone, ResNet18Backbone):
            raise ValueError(f"trunk: {self.backbone.kind} is not shared; resnet18 is")
        self._one_backbone("with a trunk")
        return self

    @model_validator(mode="after")
    def _one_origin(self) -> Experts:
        if self.start == "forked":
            self._one_backbone("forked from one network")
        if ORIGIN[0] in self.roles:
            raise ValueError(f"roles.{ORIGIN[0]}: is what experts are forked from; rename it")
        return self

    def _one_backbone(self, why: str) -> None:
        own = [name for name, role in self.roles.items() if role.backbone is not None]
        if own:
            raise ValueError(f"roles.{own[0]}.backbone: {why} all have the same; leave it out")

    @property
    def members(self) -> list[Member]:
        """(role, index within the role) of each expert, in the order of `model.experts`."""
        return [(name, i) for name, role in self.roles.items() for i in range(role.count)]

    @property
    def names(self) -> tuple[str, ...]:
        """As they are told to people: `pgd-0`."""
        return tuple(f"{role}-{index}" for role, index in self.members)

    @property
    def pretrained(self) -> list[Member]:
        """What is trained apart before the joint phase."""
        match self.start:
            case "pretrained":
                return self.members
            case "forked":
                return [ORIGIN]
            case "fresh":
                return []
            case _:
                assert_never(self.start)

    def role_of(self, member: Member) -> Role:
        """Of what is trained apart, too."""
        return Role(attack=self.origin) if member == ORIGIN else self.roles[member[0]]

    def backbone_of(self, role: str) -> BackboneConfig:
        own = self.roles[role].backbone if role in self.roles else None
        return own or self.backbone


class Joint(Phase):
    """Experts and gate together on adversarial batches crafted through the whole mixture."""

    attack: AttackConfig = PGD()
    update: Update = "all"
    """What learns: everything, the gate with each expert's last layer, or the gate alone."""
    balance: Annotated[float, Field(ge=0, le=1e3)] = 0.0
    """Weight of KL(mean gate weights || uniform), the mean over each worker's share."""
    own: Annotated[float, Field(ge=0, le=1e3)] = 0.0
    """Weight of the experts' own cross-entropy beside the mixture's loss, each on its share of the
    adversarial images, which are dealt out in turn: who is hardly asked by the gate learns, too."""
    first_temperature: Annotated[float, Field(gt=0, le=1e3)] | None = None
    """The gate's temperature in the first step, from which it goes to `gate.temperature` in the
    last one by the same factor a step; null: that all along."""
    calibrate: Calibrate | None = None
    """`confidence` fitted to the validation images after every epoch, which is judged with it and
    deployed with it; null: none."""
    checkpointing: bool = False
    """Keep one expert's activations at a time, for a forward pass more (arXiv 1604.06174)."""
    batch_norm: BatchNorm = "local"
    """Statistics of each worker's share (as DDP does), or of the global batch."""


def default_attacks() -> list[AttackName]:
    return ["fgsm", "pgd"]


class Evaluate(Spec):
    """The protocol's settings; see `fmoe.evaluation`."""

    norm: Norm = "linf"  # first: eps is checked by it
    eps: Length = 8 / 255
    attacks: list[AttackName] = Field(default_factory=default_attacks, min_length=1)
    images: PositiveInt | None = None
    """How many test images, from the first; null for all."""
    batch_size: PositiveInt = 250
    gate_collapse: Literal["stop", "report"] = "stop"
    """Whether a gate that gives nearly everything to one expert stops promotion."""

    @field_validator("eps")
    @classmethod
    def _at_most(cls, eps: float, info: ValidationInfo) -> Any:
        return within(info.data["norm"], eps) if "norm" in info.data else eps

    @property
    def threat(self) -> Threat:
        return threat_model(self.norm, self.eps)


class Parallel(Spec):
    """How several workers share the joint phase. It decides no more than rounding, so that a run
    may go on in another way."""

    data: PositiveInt | None = None
    """Groups of workers, each with its share of a batch's images; null: as many as there are."""
    expert: Annotated[int, Field(ge=1, le=256)] = 1
    """Workers of a group, each with its share of the experts: for experts that do not fit into one
    worker, or whose gradients take longer over the network than their images'."""
    gradients: Literal["float32", "bfloat16"] = "float32"
    """In which the images' gradients travel within a group."""

    @property
    def workers(self) -> int | None:
        """How many that takes, where it says so."""
        return None if self.data is None else self.data * self.expert


class CheckpointConfig(Spec):
    """Checkpoints inside of epochs, of both phases."""

    minutes: Annotated[float, Field(gt=0, le=1e6)] | None = 10.0
    """Between two of them: so much a death costs at most; null: none but at the ends of epochs."""


HOW = ("parallel", "checkpoint")
"""Parts of a configuration that say how a run is done, and not what comes out of it."""


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
    confidence: Confidence | None = None
    """Accurate experts and robust ones combined by confidence; `fmoe calibrate` fits it to a
    trained model. null: all by the gate's weights alone."""
    joint: Joint = Joint()
    evaluate: Evaluate = Evaluate()
    parallel: Parallel | Literal["auto"] = Parallel()
    """`auto`: what `fmoe plan` would take."""
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _possible(self) -> Config:
        peers, experts = self.shared_by, len(self.experts.members)
        if peers > experts:
            raise ValueError(
                f"parallel.expert: {peers} workers for {experts} experts: each must hold one"
            )
        if self.joint.update == "gate" and not self.gate.learns:
            raise ValueError(f"joint.update: gate, but gate.kind: {self.gate.kind} learns nothing")
        if self.joint.first_temperature is not None and not self.gate.learns:
            raise ValueError(
                f"joint.first_temperature: gate.kind: {self.gate.kind} has none that says anything"
            )
        if self.gate.of_features and self.experts.trunk is None:
            raise ValueError(f"gate.kind: {self.gate.kind} reads a trunk; set experts.trunk")
        if self.confidence:
            self._two_parts("confidence", self.confidence.accurate)
        if self.joint.calibrate:
            self._two_parts("joint.calibrate", self.joint.calibrate.accurate)
        if self.joint.sizes and not self.gate.any_size:
            raise ValueError(f"joint.sizes: gate.kind: {self.gate.kind} reads images of one size")
        for path, phase in {"experts.train": self.experts.train, "joint": self.joint}.items():
            used = {self.experts.backbone_of(role) for role, _ in self.experts.members}
            if phase.sizes and not all(backbone.any_size for backbone in used):
                raise ValueError(f"{path}.sizes: a backbone takes images of one size")
        if self.data.name in names():
            self.check_images(info(self.data.name).shape)
        return self

    def check_images(self, shape: Sequence[int]) -> None:
        """Raises `ValueError` for what images of this shape [C,H,W] cannot be put through."""
        height, width = shape[1:]
        for path, phase in {"experts.train": self.experts.train, "joint": self.joint}.items():
            if max(phase.sizes, default=0) > height:
                raise ValueError(f"{path}.sizes: images have {height} pixels a side")
        side = min(height, width)
        for name in ("crop", "cutout"):
            if getattr(self.data.augment, name) >= side:
                raise ValueError(f"data.augment.{name}: must be below the images' {side} pixels")

    def _two_parts(self, path: str, accurate: list[str]) -> None:
        roles = {role for role, _ in self.experts.members}
        if missing := sorted(set(accurate) - roles):
            raise ValueError(
                f"{path}.accurate: no experts of role {missing[0]} "
                f"(there are {', '.join(sorted(roles))})"
            )
        if not roles - set(accurate):
            raise ValueError(f"{path}.accurate: names every role; the robust part needs one")
        if self.gate.hard:
            raise ValueError(f"{path}: gate.kind: {self.gate.kind} asks one expert alone")

    @property
    def shared_by(self) -> int:
        """Workers that share the experts, where it is said."""
        return 1 if self.parallel == "auto" else self.parallel.expert

    @property
    def coarse_gradients(self) -> bool:
        """Whether the images' gradients travel in bfloat16."""
        return self.parallel != "auto" and self.parallel.gradients == "bfloat16"

    @property
    def numerics(self) -> Numerics:
        return Numerics(self.precision, self.deterministic, self.compile)

    def plain(self) -> dict[str, Any]:
        """The tree as JSON-like values; `Config.model_validate` reads it back."""
        return self.model_dump(mode="json")

    def deciding(self) -> dict[str, Any]:
        """The same without what says only how the run is done."""
        return {key: part for key, part in self.plain().items() if key not in HOW}

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
