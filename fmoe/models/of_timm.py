"""Any classifier of timm's as an expert (`pip install 'fmoe[timm]'`).

Its body gives pooled features, and a linear layer of ours, `head`, the logits. It is told the
images' size where it must know it (transformers).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fmoe.errors import UserError, first_line
from fmoe.models.backbone import Backbone
from fmoe.models.experts import Normalize
from fmoe.storage.folder import Damaged, Folder
from fmoe.storage.tensors import read_header, unpack

PRETRAINED, END = "pretrained", ".safetensors"
WEIGHTS = rf"^{PRETRAINED}$|\{END}$"
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class TimmNet(nn.Module):
    """Images [B,C,H,W] in [0,1] to logits [B,K]. shape: [C,H,W]; features: what the body gives."""

    def __init__(
        self,
        body: nn.Module,
        *,
        shape: Sequence[int],
        features: int,
        normalize: Normalize,
        classes: int,
    ):
        super().__init__()
        self.shape = tuple(shape)
        self.normalize = normalize
        self.body = body
        self.head = nn.Linear(features, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.normalize(x_BCHW)))
        return logits


class Timm(Backbone):
    """A network of the library timm, by its name. It has its own normalisation for images in
    colour, and the data set's for grey ones."""

    kind: Literal["timm"] = "timm"
    name: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,100}(\.[a-z0-9_]{1,100})?$")]
    """As `timm.list_models()` gives it, such as resnet26t or vit_tiny_patch16_224."""
    weights: Annotated[str, Field(pattern=WEIGHTS, max_length=1000)] | None = None
    """What training begins with: a safetensors file of a network of this name (a path or URI), of
    whatever number of classes; `pretrained`, which timm downloads; null: drawn."""
    weights_sha256: Digest | None = None
    """Of that file; read from it where it is not given, and checked wherever it is loaded."""

    @model_validator(mode="before")
    @classmethod
    def _with_digest(cls, tree: Any) -> Any:
        """Two files under one path are two experts."""
        if not isinstance(tree, dict) or tree.get("weights_sha256") is not None:
            return tree
        file = tree.get("weights")
        if not isinstance(file, str) or not file.endswith(END):
            return tree
        return {**tree, "weights_sha256": hashlib.sha256(contents(file)).hexdigest()}

    @model_validator(mode="after")
    def _of_a_file(self) -> Timm:
        if self.weights in (None, PRETRAINED) and self.weights_sha256 is not None:
            raise ValueError("weights_sha256: weights is no file")
        return self

    def build(
        self, *, shape: Sequence[int], mean: Sequence[float], std: Sequence[float], classes: int
    ) -> nn.Module:
        """Raises `UserError` where timm is not installed or does not know the name, and for images
        that the network cannot be told of."""
        body = self._body(shape, 0)
        config = body.pretrained_cfg
        if shape[0] == len(config.get("mean", ())) == len(config.get("std", ())):
            mean, std = config["mean"], config["std"]
        self._try(body, shape)
        features = getattr(body, "head_hidden_size", None) or body.num_features
        return TimmNet(
            body,
            shape=shape,
            features=features,
            normalize=Normalize(mean, std),
            classes=classes,
        )

    @property
    def any_size(self) -> bool:
        return not self._about(library()).fixed_input_size

    def _about(self, timm: Any) -> Any:
        """timm's configuration of the network. Raises `UserError` for an unknown name."""
        architecture, _, tag = self.name.partition(".")
        tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
        if not timm.is_model(architecture):
            near = get_close_matches(architecture, timm.list_models(), 4)
        elif tag and tag not in tags:
            near = [f"{architecture}.{name}" for name in tags[:4]]
        else:
            return timm.get_pretrained_cfg(self.name)
        told = f"; there are {', '.join(near)}" if near else ""
        raise UserError(f"backbone: timm has no network {self.name}{told}")

    def _body(self, shape: Sequence[int], classes: int, pretrained: bool = False) -> Any:
        timm = library()
        size: dict[str, Any] = {}
        if self._about(timm).fixed_input_size:
            size = {"img_size": tuple(shape[1:])}
        try:
            return timm.create_model(
                self.name, pretrained=pretrained, num_classes=classes, in_chans=shape[0], **size
            )
        except Exception as error:  # noqa: BLE001 - its networks and downloads raise many kinds
            if pretrained:
                raise UserError(
                    f"weights: pretrained: those of {self.name} cannot be had "
                    f"({first_line(error)}): is there a network?"
                ) from None
            raise self._refusal(shape, error) from None

    def _try(self, body: nn.Module, shape: Sequence[int]) -> None:
        """A pass without numbers: what is too small for a network would stop its training. Costs
        nothing where the network has no memory yet, as before every phase."""
        if any(parameter.device.type != "meta" for parameter in body.parameters()):
            return
        try:
            body.eval()(torch.empty(2, *shape, device="meta"))
        except (RuntimeError, ValueError, AssertionError, ZeroDivisionError) as error:
            raise self._refusal(shape, error) from None
        body.train()

    def _refusal(self, shape: Sequence[int], error: Exception) -> UserError:
        sides = "x".join(map(str, shape))
        return UserError(
            f"backbone: timm's {self.name} is not for images of {sides} ({first_line(error)})"
        )

    def start(self, network: nn.Module) -> None:
        """Raises `UserError` where the weights cannot be had, or are another network's."""
        assert isinstance(network, TimmNet)
        if self.weights == PRETRAINED:
            own = self._body(network.shape, 0, pretrained=True)
            network.body.load_state_dict(own.state_dict())
        elif self.weights is not None:
            self._load(network, self.weights)

    def _load(self, network: TimmNet, file: str) -> None:
        data = contents(file)
        if hashlib.sha256(data).hexdigest() != self.weights_sha256:
            raise UserError(f"{file}: its sha256 is not {self.weights_sha256}: it has changed")
        try:
            given = unpack(data, file)
        except Damaged as error:
            raise UserError(str(error)) from None
        own, found = network.state_dict(), {}
        names = classifiers(network.body)
        for name, tensor in given.items():
            last = next((part for part in names if name.startswith(f"{part}.")), None)
            found[f"body.{name}" if last is None else f"head{name.removeprefix(last)}"] = tensor
        for name in ("head.weight", "head.bias"):  # of other classes it is not taken
            if name in found and found[name].shape != own[name].shape:
                del found[name]
        body = {name for name in own if name.startswith("body.")}
        unlike = [
            name for name in sorted(body | found.keys())
            if name not in own or name not in found or own[name].shape != found[name].shape
        ]  # fmt: skip
        if unlike:
            raise UserError(
                f"{file}: no weights of {self.name} for such images ({unlike[0]} does not fit)"
            )
        with torch.no_grad():
            network.load_state_dict({**own, **found})


def library() -> Any:
    """timm. Raises `UserError` where it is not installed."""
    try:
        import timm
    except ImportError:
        raise UserError("backbone: kind: timm: install it, `pip install timm`") from None
    return timm


def classifiers(body: nn.Module) -> tuple[str, ...]:
    """Names of a timm network's last layer, of which ours takes the place."""
    named = body.pretrained_cfg.get("classifier") or ()  # type: ignore[operator,union-attr]
    return (named,) if isinstance(named, str) else tuple(named)


def contents(file: str) -> bytes:
    """Of a safetensors file, the size of which its header tells. Raises `UserError`."""
    folder, _, name = file.rpartition("/")
    try:
        place = Folder.at(folder or ("/" if file.startswith("/") else Path.cwd())).reach()
        return place.read(name, limit=read_header(place, name).size)
    except FileNotFoundError:
        raise UserError(f"weights: {file}: no such file") from None
    except Damaged as error:
        raise UserError(f"weights: {error}") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)})") from None
