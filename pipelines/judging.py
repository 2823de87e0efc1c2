"""A trained model under the protocol, over Ray; one that was killed goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fmoe import checkpoint, data, provenance, tracking
from fmoe.config import Config, fingerprint
from fmoe.data import Split
from fmoe.errors import UserError
from fmoe.evaluation import FULL, PROTOCOL, Evaluation, Settings
from fmoe.evaluation.kept import Kept
from fmoe.held_out import HeldOut, check_classes
from fmoe.locate import fixed, located
from fmoe.mixture import Mixture
from fmoe.on_ray import evaluate as on_ray
from fmoe.on_ray.session import Resources, session
from fmoe.paths import aside, home, writable
from fmoe.promotion import foreign, lacks, leaks_unknown
from fmoe.schema import parse_ratio
from fmoe.storage import Folder
from fmoe.threat import threat_model
from fmoe.version import VERSION
from pipelines.output import Display


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
    norm: str | None = None


@dataclass(frozen=True)
class Judged:
    """A model and what was found of it. name: as it was asked for; source: the same with the
    version's number in place of an alias; card: its `model.json`; test: the images that it was
    judged on, the first of `data`'s; wanted: how many were asked for, None for all; kept: the
    finished stages, until nothing can be lost any more."""

    name: str
    source: str
    network: Mixture
    config: Config
    card: dict[str, Any]
    data: HeldOut
    test: Split
    wanted: int | None
    found: Evaluation
    kept: Kept

    @property
    def known_classes(self) -> list[str]:
        """The names of what the model tells apart."""
        return list(self.card["classes"])

    def to_json(self) -> dict[str, Any]:
        made_from = self.card["data"]
        answer = self.found.to_json() | {
            "model": self.name,
            "sha256": self.card["sha256"],
            "data": self.data.name,
            "digest": self.data.digest,
            "test_digest": self.data.test_digest,
            "trained_on_data": made_from["name"],
            "trained_on": made_from["digest"],
            "trained_on_test": made_from.get("test_digest"),
            "leaked": self.data.count_leaked(len(self.test)),
            "selected_on": self.card.get("selected_on"),
            "attacks": list(self.found.settings.attacks),
            "recipe_eps": self.config.evaluate.eps,
            "recipe_norm": self.config.evaluate.norm,
            "test_images": len(self.data.test),
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "revision": provenance.git_revision(),
            "versions": {"fmoe": VERSION, **provenance.hardware()},
        }
        answer["notes"] = [*answer["notes"], *self._notes(answer)]
        return answer | {"full": not lacks(answer)}

    def _notes(self, answer: dict[str, Any]) -> Iterator[str]:
        """What the reader should know of the images, and what is no flag."""
        if self.wanted is not None and self.wanted > len(self.test):
            yield f"{self.wanted} images were asked for, and there are {len(self.test)}"
        other = foreign(answer)
        if other is not None:
            yield other
        if self.data.unread is not None:
            yield (
                "whether test images are among the training images was not looked for: "
                f"{self.data.unread}"
            )
        elif other is None:
            yield from leaks_unknown(answer)


def judge(model: str, request: Request, display: Display, images: HeldOut | None = None) -> Judged:
    """images: what to judge on, where they are read already.

    Raises `UserError` for a model, data or settings that do not fit.
    """
    source = fixed(model)
    if model.startswith("models:") and tracking.read_only():
        display.line(f"{home()}: cannot be written: the evaluation is not recorded in the registry")
    with located(source) as folder:
        network, config, card = checkpoint.load_model(folder)
    settings = chosen(request, config, card)
    name = data.known(request.data or config.data.name)
    differ = check_classes(card, name, model)
    images = images or HeldOut.read(name, request.data_dir)
    wanted = config.evaluate.images if request.limit is None else request.limit
    test = images.test[:wanted]
    key = {
        "model": [card["sha256"], card["config_sha256"]],
        "images": data.digest(test),
        "settings": settings.plain(),
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
    found = replace(found, raised=[*found.raised, *differ, *images.leaks(len(test))])
    return Judged(model, source, network, config, card, images, test, wanted, found, kept)


def chosen(request: Request, config: Config, card: dict[str, Any]) -> Settings:
    try:
        eps = config.evaluate.eps if request.eps is None else float(parse_ratio(request.eps))
    except ValueError:
        raise UserError(f"--eps {request.eps}: expected a number such as 0.1 or 8/255") from None
    if not 0 <= eps <= 1:
        raise UserError(f"--eps {request.eps}: must lie in [0, 1] (pixels of [0,1])")
    norm = config.evaluate.norm if request.norm is None else request.norm
    if request.limit is not None and request.limit < 1:
        raise UserError(f"--limit {request.limit}: at least 1 image is judged")
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
        threat_model(norm, eps),
        config.evaluate.batch_size,
        request.seed,
        experts=tuple(f"{role}-{i}" for role, i in config.experts.members),
        selected_on=selected_on if selected_on in ("validation", "test") else None,
        collapse_stops=config.evaluate.gate_collapse == "stop",
        fast=request.fast,
    )
