"""Model folders: weights, configuration and card of a trained model; checked when read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from fmoe import assembly, model_card
from fmoe.config import Config, format_1, parse_yaml, validate
from fmoe.data.facts import MOST_CLASSES, ClassName, Facts, Mean, Side, Std, check_channels
from fmoe.documents import LARGEST_YAML
from fmoe.errors import UserError, first_line
from fmoe.models.mixture import Mixture
from fmoe.schema import faults
from fmoe.storage.folder import Damaged, Folder, sha256
from fmoe.storage.tensors import pack, read_header, unpack
from fmoe.version import VERSION

WEIGHTS = "model.safetensors"
FILES = (WEIGHTS, "config.yaml", "model.json")
"""Of a model folder; the last names the digests of the others. Beside them stands a page for
people, `README.md` (`fmoe.model_card`), which is written and never read."""
FORMAT = 2
"""Of model folders. Format 1 (fmoe 0.1.0) did not hold mean and std; see `fmoe.config.format_1`."""
Line = Annotated[str, Field(max_length=1000)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def save_model(
    folder: Folder,
    weights: Mapping[str, Tensor],
    config: Config,
    *,
    data_digest: str,
    part_digests: Mapping[str, str] | None = None,
    counts: Mapping[str, int] | None = None,
    metrics: Mapping[str, Any],
    facts: Facts | None = None,
    extra: Mapping[str, Any] | None = None,
) -> str:
    """Writes a model folder and its `README.md`; `model.json` last, with the digest of the weights
    (returned).

    facts: by which the model was built, if not those of the data set that `config` names;
    data_digest: of train and test; counts: images of each part; part_digests: `train_digest` and
    `test_digest`, so that who has the test images alone can tell that they are those of this data
    set.
    """
    facts = facts or assembly.facts_of(config)
    data, tree = pack(weights), config.to_yaml().encode()
    folder.write(WEIGHTS, data)
    folder.write("config.yaml", tree)
    card = {
        "format": FORMAT,
        "classes": list(facts.classes),
        "input_shape": list(facts.shape),
        "mean": list(facts.mean),
        "std": list(facts.std),
        "versions": {"fmoe": VERSION, "torch": torch.__version__},
        "data": {"name": config.data.name, "digest": data_digest, **(part_digests or {})}
        | ({} if counts is None else {"images": dict(counts)}),
        "metrics": metrics,
        "sha256": sha256(data),
        "config_sha256": sha256(tree),
        **(extra or {}),
    }
    write_readme(folder, card, config)
    folder.write_json("model.json", card)
    return sha256(data)


def write_readme(folder: Folder, card: Mapping[str, Any], config: Config) -> None:
    """Of a card that was just made, or verified."""
    folder.write(model_card.README, model_card.render(card, config).encode())


class Trained(BaseModel):
    """Of a card: what the model was trained on."""

    model_config = ConfigDict(strict=True)
    name: Line
    digest: Line
    train_digest: Line | None = None
    test_digest: Line | None = None
    images: dict[Line, int] | None = None


class Origin(BaseModel):
    """What tells a card of format 1 how its images are normalised."""

    model_config = ConfigDict(strict=True)
    data: Trained


class Card(Origin):
    """What `model.json` holds at least, and of which types. More is allowed."""

    model_config = ConfigDict(strict=True)
    classes: Annotated[list[ClassName], Field(min_length=2, max_length=MOST_CLASSES)]
    input_shape: Annotated[list[Side], Field(min_length=3, max_length=3)]
    mean: list[Mean]
    std: list[Std]
    versions: dict[str, Any]
    metrics: dict[str, Any]
    sha256: Digest
    config_sha256: Digest
    run_id: Line | None = None
    selected_on: Line | None = None

    @model_validator(mode="after")
    def _a_value_a_channel(self) -> Card:
        check_channels(self.input_shape[0], self.mean, self.std)
        return self


def facts_of(card: Mapping[str, Any]) -> Facts:
    """By which the model of a card that `read_card` gave is built."""
    channels, height, width = card["input_shape"]
    mean, std = tuple(map(float, card["mean"])), tuple(map(float, card["std"]))
    return Facts((channels, height, width), tuple(card["classes"]), mean, std)


def read_card(folder: Folder) -> dict[str, Any]:
    """`model.json`, of which what `Card` names is there. Raises `UserError` where the folder holds
    no model."""
    source = f"{folder.uri}/model.json"
    try:
        card = folder.read_json("model.json")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder.uri}: no model folder (has no model.json)") from None
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({first_line(error)})") from None
    except Damaged as error:
        raise UserError(str(error)) from None
    try:
        card = _of_today(card, source)
        Card.model_validate(card)
    except ValidationError as error:
        raise UserError(f"{source}: {faults(error, card)}") from None
    return card


def _of_today(card: dict[str, Any], source: str) -> dict[str, Any]:
    """With what a card of format 1 does not hold."""
    written = card.get("format")
    if type(written) is int and written == FORMAT:
        return card
    if type(written) is not int or written != 1:
        raise UserError(
            f"{source}: format {str(written)[:40]}: this fmoe reads {FORMAT} and 1; is it of a "
            "newer one?"
        )
    Origin.model_validate(card)
    name = card["data"]["name"]
    try:
        return format_1.card(card)
    except KeyError:
        raise UserError(
            f"{source}: data.name: format 1 does not hold the normalisation, and that of "
            f"{name[:100]!r} is not known"
        ) from None


def load_model(folder: Folder) -> tuple[Mixture, Config, dict[str, Any]]:
    """The model in eval mode, its configuration and its card (see `facts_of`).

    Nothing outside of the folder changes what it gives. Digests tell damage. Who writes a folder
    writes these too, so that everything else is checked as well, in the order of its cost. Raises
    `UserError` naming the file where one is missing, truncated, has a wrong digest or does not fit
    the others.
    """
    card = read_card(folder)
    try:
        config = _read_config(folder, card)
        return _read_weights(folder, config, card).eval(), config, card
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: missing") from None
    except OSError as error:
        raise UserError(f"{folder.uri}: cannot be read ({first_line(error)})") from None
    except Damaged as error:
        raise UserError(str(error)) from None
    except MemoryError:
        raise UserError(f"{folder.uri}: is larger than there is memory for") from None


def _verified(folder: Folder, name: str, digest: str, limit: int) -> bytes:
    data = folder.read(name, limit=limit)
    if sha256(data) != digest:
        raise Damaged(f"{folder.uri}/{name}: damaged: its sha256 is not that of model.json")
    return data


def _read_config(folder: Folder, card: Mapping[str, Any]) -> Config:
    source = f"{folder.uri}/config.yaml"
    data = _verified(folder, "config.yaml", card["config_sha256"], LARGEST_YAML)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise UserError(f"{source}: not a YAML file (not UTF-8)") from None
    tree = parse_yaml(text, source)
    config = validate(format_1.config(tree) if card["format"] == 1 else tree, source)
    trained_on = card["data"]["name"]
    if trained_on != config.data.name:
        raise UserError(
            f"{folder.uri}/model.json: data.name: {trained_on[:100]}, and config.yaml names "
            f"{config.data.name}"
        )
    return config


def _read_weights(folder: Folder, config: Config, card: Mapping[str, Any]) -> Mixture:
    header, facts = read_header(folder, WEIGHTS), facts_of(card)
    try:
        header.require(assembly.mixture_state(config, facts, len(header.tensors)))
    except Damaged as error:
        raise UserError(f"{error}, by config.yaml") from None
    except ValueError as error:
        raise UserError(f"{header.source}: does not fit config.yaml ({error})") from None
    tensors = unpack(_verified(folder, WEIGHTS, card["sha256"], header.size), header.source)
    model = assembly.mixture(config, facts)
    model.load_state_dict(tensors)
    return model
