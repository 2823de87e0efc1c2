"""A trained model under the protocol, over Ray; one that was killed goes on where it was."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fmoe import checkpoint, provenance, tracking
from fmoe import data as data_sets
from fmoe.config import Config, fingerprint
from fmoe.data import Data, Split
from fmoe.errors import UserError
from fmoe.evaluation import FULL, PROTOCOL, Evaluation, Settings
from fmoe.evaluation.kept import Kept
from fmoe.locate import fixed, located
from fmoe.mixture import Mixture
from fmoe.on_ray import evaluate as on_ray
from fmoe.on_ray.session import Resources, session
from fmoe.paths import aside, home, writable
from fmoe.promotion import lacks
from fmoe.schema import parse_ratio
from fmoe.storage import Folder
from fmoe.version import VERSION
from pipelines.output import Display

LEAKED = 0.005
"""Share of test images among the training images from which on it is a flag."""


@dataclass(frozen=True)
class Request:
    """What the command line asked for; None where the recipe decides."""

    data: str | None = None
    data_dir: Path | None = None
    attacks: str | None = None
    full: bool = False
    eps: str | None = None
    limit: int | None = None
    workers: int = 1
    seed: int = 0
    gpu: bool | None = None
    fast: bool = False


@dataclass(frozen=True)
class Judged:
    """A model and what was found of it. name: as it was asked for; source: the same with the
    version's number in place of an alias; card: its `model.json`; kept: the finished stages, until
    nothing can be lost any more."""

    name: str
    source: str
    network: Mixture
    config: Config
    card: dict[str, Any]
    data: Data
    test: Split
    found: Evaluation
    kept: Kept

    def to_json(self) -> dict[str, Any]:
        answer = self.found.to_json() | {
            "model": self.name,
            "sha256": self.card["sha256"],
            "data": self.data.name,
            "digest": self.data.digest,
            "trained_on": self.card["data"]["digest"],
            "selected_on": self.card.get("selected_on"),
            "attacks": list(self.found.settings.attacks),
            "recipe_eps": self.config.evaluate.eps,
            "test_images": len(self.data.test),
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "revision": provenance.git_revision(),
            "versions": {"fmoe": VERSION, **provenance.hardware()},
        }
        return answer | {"full": not lacks(answer)}


def judge(model: str, request: Request, display: Display) -> Judged:
    """Raises `UserError` for a model, data or settings that do not fit."""
    source = fixed(model)
    if model.startswith("models:") and tracking.read_only():
        display.line(f"{home()}: cannot be written: the evaluation is not recorded in the registry")
    with located(source) as folder:
        network, config, card = checkpoint.load_model(folder)
    settings = chosen(request, config, card)
    loaded = data_sets.load(request.data or config.data.name, request.data_dir)
    if loaded.info.shape != data_sets.INFO[config.data.name].shape:
        raise UserError(f"--data {request.data}: the model was made for {config.data.name}")
    test = loaded.test[: request.limit or config.evaluate.images]
    key = {
        "model": [card["sha256"], card["config_sha256"]],
        "images": data_sets.digest(test),
        "settings": asdict(settings),
        "code": [PROTOCOL, VERSION, provenance.source()],
    }
    stages = home() / "evaluations"
    if not writable(stages):
        display.line(f"{stages}: cannot be written: killed, this evaluation starts anew")
        stages = aside()
    kept = Kept(Folder.at(stages) / fingerprint(key)[:32])
    bar = display.task(f"evaluate {model}", len(test))
    with session(request.workers):
        found = on_ray.evaluate(
            network,
            config,
            test,
            settings,
            resources=Resources.per_worker(request.workers, request.gpu),
            kept=kept,
            progress=lambda done, _: display.update(bar, done),
        )
    found = replace(found, raised=[*found.raised, *leaked(loaded, test)])
    return Judged(model, source, network, config, card, loaded, test, found, kept)


def chosen(request: Request, config: Config, card: dict[str, Any]) -> Settings:
    try:
        eps = config.evaluate.eps if request.eps is None else float(parse_ratio(request.eps))
    except ValueError:
        raise UserError(f"--eps {request.eps}: expected a number such as 0.1 or 8/255") from None
    if not 0 <= eps <= 1:
        raise UserError(f"--eps {request.eps}: must lie in [0, 1] (pixels of [0,1])")
    if request.full and request.attacks:
        raise UserError("--full is all attacks: leave out --attacks")
    names: tuple[str, ...] = (*config.evaluate.attacks, "mixture", "sweeps")
    if request.full:
        names = FULL
    elif request.attacks:
        names = tuple(name.strip() for name in request.attacks.split(","))
    selected_on = card.get("selected_on")
    return Settings(
        names,
        eps,
        config.evaluate.batch_size,
        request.seed,
        experts=tuple(f"{role}-{i}" for role, i in config.experts.members),
        selected_on=selected_on if selected_on in ("validation", "test") else None,
        collapse_stops=config.evaluate.gate_collapse == "stop",
        fast=request.fast,
    )


def leaked(data: Data, test: Split) -> list[str]:
    """A flag where test images are among those of training or selection, pixel for pixel."""
    seen = {image.numpy().tobytes() for split in (data.train, data.val) for image in split.images}
    count = sum(image.numpy().tobytes() in seen for image in test.images)
    if count <= LEAKED * len(test):
        return []
    return [
        f"test-in-training: {count} of {len(test)} test images are also in the training or "
        "validation split"
    ]
