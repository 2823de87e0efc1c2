"""Training checkpoints and model folders: safetensors and JSON, never a pickle.

A checkpoint is `epoch-0003/{state.safetensors, manifest.json}`; the manifest carries the metrics
of all epochs so far, so nothing that was reported can be lost. Kept are the last two (should the
newest be damaged, the one before it serves) and the best.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from fmoe import assembly
from fmoe.config import Config, parse_yaml, validate
from fmoe.data import INFO
from fmoe.errors import UserError, first_line
from fmoe.mixture import Mixture
from fmoe.storage import MANIFEST, Damaged, Folder, sha256
from fmoe.version import VERSION

Tensors = dict[str, Tensor]
STATE = "state.safetensors"
WEIGHTS = "model.safetensors"
FILES = (WEIGHTS, "config.yaml", "model.json")
"""Of a model folder; the last names the digests of the others."""


@dataclass(frozen=True)
class Checkpoint:
    """model and momentum tensors after an epoch; history: metrics of every epoch so far; warm: what
    `fmoe.warm_start` keeps."""

    epoch: int
    model: Tensors
    momentum: Tensors
    history: list[dict[str, float]]
    warm: Tensors = field(default_factory=dict)


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    data: bytes = save_tensors({n: tensor.detach().contiguous() for n, tensor in tensors.items()})
    return data


def unpack(data: bytes, source: str) -> Tensors:
    try:
        tensors: Tensors = load_tensors(data)
    except SafetensorError as error:
        raise Damaged(f"{source}: not a safetensors file ({first_line(error)})") from None
    return tensors


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one phase in a folder. key: hash of what they belong to."""

    folder: Folder
    key: str

    def save(self, checkpoint: Checkpoint, best_epoch: int) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in checkpoint.model.items()}
        tensors |= {f"momentum.{name}": tensor for name, tensor in checkpoint.momentum.items()}
        tensors |= {f"warm.{name}": tensor for name, tensor in checkpoint.warm.items()}
        manifest = {"key": self.key, "epoch": checkpoint.epoch, "history": checkpoint.history}
        self._folder(checkpoint.epoch).commit({STATE: pack(tensors)}, manifest)
        keep = {checkpoint.epoch, checkpoint.epoch - 1, best_epoch}
        for epoch in self.epochs():
            if epoch not in keep and epoch < checkpoint.epoch:
                self._folder(epoch).delete()

    def latest(self) -> Checkpoint | None:
        """The newest that is whole; None where there is none. Raises `UserError` for another's."""
        for epoch in reversed(self.epochs()):
            try:
                return self.load(epoch)
            except Damaged:
                continue
        return None

    def load(self, epoch: int) -> Checkpoint:
        """Raises `Damaged`, or `UserError` where it belongs to other settings."""
        folder = self._folder(epoch)
        manifest = folder.manifest()
        if manifest is None:
            raise Damaged(f"{folder.uri}: no {MANIFEST}")
        if manifest.get("key") != self.key:
            raise UserError(
                f"{folder.uri}: belongs to other settings, other data or another version of fmoe; "
                "give another --name"
            )
        tensors = unpack(folder.committed(STATE, manifest), f"{folder.uri}/{STATE}")

        def part(prefix: str) -> Tensors:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        history = manifest.get("history")
        if not isinstance(history, list):
            raise Damaged(f"{folder.uri}/{MANIFEST}: holds no history")
        return Checkpoint(epoch, part("model."), part("momentum."), history, part("warm."))

    def _folder(self, epoch: int) -> Folder:
        return self.folder / f"epoch-{epoch:04d}"

    def epochs(self) -> list[int]:
        """Of which there are checkpoints, in order."""
        names = (name.removeprefix("epoch-") for name in self.folder.names())
        return sorted(int(name) for name in names if name.isdigit())


def save_model(
    folder: Folder,
    weights: Mapping[str, Tensor],
    config: Config,
    *,
    data_digest: str,
    part_digests: Mapping[str, str] | None = None,
    metrics: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> str:
    """Writes a model folder; `model.json` last, with the digest of the weights (returned).

    data_digest: of train and test; part_digests: `train_digest` and `test_digest`, so that who has
    the test images alone can tell that they are those of this data set.
    """
    info = INFO[config.data.name]
    data, tree = pack(weights), config.to_yaml().encode()
    folder.write(WEIGHTS, data)
    folder.write("config.yaml", tree)
    card = {
        "format": 1,
        "classes": list(info.classes),
        "input_shape": list(info.shape),
        "versions": {"fmoe": VERSION, "torch": torch.__version__},
        "data": {"name": config.data.name, "digest": data_digest, **(part_digests or {})},
        "metrics": metrics,
        "sha256": sha256(data),
        "config_sha256": sha256(tree),
        **(extra or {}),
    }
    folder.write_json("model.json", card)
    return sha256(data)


def read_card(folder: Folder) -> dict[str, Any]:
    """`model.json`. Raises `UserError` where the folder holds no model."""
    try:
        return folder.read_json("model.json")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder.uri}: no model folder (has no model.json)") from None
    except OSError as error:
        raise UserError(f"{folder.uri}/model.json: cannot be read ({first_line(error)})") from None
    except Damaged as error:
        raise UserError(str(error)) from None


def load_model(folder: Folder) -> tuple[Mixture, Config, dict[str, Any]]:
    """The model in eval mode, its configuration and its card.

    Raises `UserError` naming the file where one is missing, truncated or has a wrong digest.
    """
    card = read_card(folder)
    contents = {}
    for name, key in ((WEIGHTS, "sha256"), ("config.yaml", "config_sha256")):
        try:
            contents[name] = folder.read(name)
        except FileNotFoundError:
            raise UserError(f"{folder.uri}/{name}: missing") from None
        except OSError as error:
            raise UserError(f"{folder.uri}/{name}: cannot be read ({first_line(error)})") from None
        if sha256(contents[name]) != card.get(key):
            raise UserError(f"{folder.uri}/{name}: damaged: its sha256 is not that of model.json")
    source = f"{folder.uri}/config.yaml"
    try:
        text = contents["config.yaml"].decode()
    except UnicodeDecodeError:
        raise UserError(f"{source}: not a YAML file (not UTF-8)") from None
    config = validate(parse_yaml(text, source), source)
    try:
        tensors = unpack(contents[WEIGHTS], f"{folder.uri}/{WEIGHTS}")
        with torch.device("meta"):  # a configuration can ask for more memory than there is
            assembly.mixture(config).load_state_dict(tensors, assign=True)
        model = assembly.mixture(config)
        model.load_state_dict(tensors)
    except (Damaged, RuntimeError) as error:
        raise UserError(f"{folder.uri}/{WEIGHTS}: does not fit ({first_line(error)})") from None
    return model.eval(), config, card


def copy_state(module: nn.Module) -> Tensors:
    """The module's tensors as they are now, on the CPU."""
    return {name: t.detach().cpu().clone() for name, t in module.state_dict().items()}
