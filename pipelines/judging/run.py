"""A trained model under the protocol, over Ray; one that was killed goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from fmoe import data, provenance
from fmoe.attacks.threat import threat_model
from fmoe.config import fingerprint
from fmoe.data import Split
from fmoe.data.held_out import HeldOut
from fmoe.errors import UserError
from fmoe.evaluation import FULL, PROTOCOL, Evaluation, Settings, by_class
from fmoe.evaluation.kept import Kept
from fmoe.evaluation.promotion import foreign, lacks, leaks_unknown
from fmoe.paths import aside, home, writable
from fmoe.schema import parse_ratio
from fmoe.storage.folder import Folder
from fmoe.version import VERSION
from pipelines.display import Display
from pipelines.judging.opened import Opened, opened


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asked for: its options by their names, as `pipelines.options.asked`
    gives them. None where the recipe decides."""

    data: str | None = None
    data_dir: str | None = None
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
    """A model and what was found of it. test: the images that it was judged on, the first of
    `data`'s; wanted: how many were asked for, None for all; kept: the finished stages, until
    nothing can be lost any more."""

    model: Opened
    data: HeldOut
    test: Split
    wanted: int | None
    evaluation: Evaluation
    kept: Kept

    @property
    def name(self) -> str:
        """As it was asked for."""
        return self.model.name

    @property
    def known_classes(self) -> list[str]:
        """The names of what the model tells apart: the data set's, where it does not say."""
        return list(self.model.card.get("classes", self.data.facts.classes))

    def to_json(self) -> dict[str, Any]:
        made_from = self.model.card.get("data", {})
        answer = self.evaluation.to_json() | {
            "model": self.name,
            "sha256": self.model.sha256,
            "data": self.data.name,
            "digest": self.data.digest,
            "test_digest": self.data.test_digest,
            "trained_on_data": self.model.data,
            "trained_on": made_from.get("digest"),
            "trained_on_test": made_from.get("test_digest"),
            "leaked": self.data.count_leaked(len(self.test)),
            "selected_on": self.model.card.get("selected_on"),
            "attacks": list(self.evaluation.settings.attacks),
            "recipe_eps": self.model.wanted.eps,
            "recipe_norm": self.model.wanted.norm,
            "test_images": len(self.data.test),
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "revision": provenance.git_revision(),
            "versions": {"fmoe": VERSION, **provenance.hardware()},
        }
        answer |= self.of_classes()
        answer["notes"] = [
            *answer["notes"],
            *by_class.imbalance(answer["by_class"], self.data.per_class),
            *self._notes(answer),
        ]
        return answer | {"full": not lacks(answer)}

    def of_classes(self) -> dict[str, Any]:
        """Figures by class, and what is taken for what."""
        names = self.data.facts.classes
        return {
            "by_class": by_class.by_class(self.evaluation, names),
            "confusion": by_class.confusion(self.evaluation, len(names)),
        }

    def _notes(self, answer: dict[str, Any]) -> Iterator[str]:
        """What the reader should know of the images, and what is no flag."""
        if self.wanted is not None and self.wanted > len(self.test):
            yield f"{self.wanted} images were asked for, and there are {len(self.test)}"
        unknown = self.model.data is None
        other = foreign(answer)
        if unknown:
            yield "what the model was trained on is not known"
        elif other is not None:
            yield other
        if self.data.unread is not None:
            yield (
                "whether test images are among the training images was not looked for: "
                f"{self.data.unread}"
            )
        elif other is None and not unknown:
            yield from leaks_unknown(answer)


def judge(model: str, request: Request, display: Display, images: HeldOut | None = None) -> Judged:
    """images: what to judge on, where they are read already.

    Raises `UserError` for a model, data or settings that do not fit.
    """
    if model.startswith("models:"):
        from fmoe import tracking

        if tracking.read_only():
            display.line(
                f"{home()}: cannot be written: the evaluation is not recorded in the registry"
            )
    it = opened(model)
    settings = chosen(request, it)
    if request.data is None and it.data is None:
        raise UserError(f"--data: {model} does not say what it was trained on; name the data set")
    name = request.data or it.data or ""
    differ = it.fits(name, data.find(name, request.data_dir).facts)
    images = images or HeldOut.read(name, request.data_dir)
    wanted = it.wanted.images if request.limit is None else request.limit
    test = images.test[:wanted].held()
    key = {
        "model": [*it.key, it.answers(test)],
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
    # what it takes a second to import, once nothing is left to refuse
    from fmoe.on_ray import evaluate as on_ray
    from fmoe.on_ray.session import Resources, session

    with session(request.workers):
        evaluation = on_ray.evaluate(
            it.network,
            it.subject,
            test,
            settings,
            resources=Resources.per_worker(request.workers, request.gpu),
            kept=kept,
            progress=lambda done, _: display.update(bar, done),
        )
    evaluation = replace(evaluation, raised=[*evaluation.raised, *differ, *images.leaks(len(test))])
    return Judged(it, images, test, wanted, evaluation, kept)


def chosen(request: Request, model: Opened) -> Settings:
    wanted = model.wanted
    try:
        eps = wanted.eps if request.eps is None else float(parse_ratio(request.eps))
    except ValueError:
        raise UserError(f"--eps {request.eps}: expected a number such as 0.1 or 8/255") from None
    norm = wanted.norm if request.norm is None else request.norm
    if norm != wanted.norm and request.eps is None:
        raise UserError(f"--norm {norm}: give --eps, too: the recipe's is of {wanted.norm}")
    try:
        threat = threat_model(norm, eps)
    except UserError as error:
        raise UserError(f"--{error}") from None
    if request.limit is not None and request.limit < 1:
        raise UserError(f"--limit {request.limit}: at least 1 image is judged")
    if request.full and request.attacks:
        raise UserError("--full is all attacks: leave out --attacks")
    names: tuple[str, ...] = (*wanted.attacks, "mixture", "sweeps")
    if request.full:
        names = FULL
    elif request.attacks:
        names = tuple(name.strip() for name in request.attacks.split(","))
    selected_on = model.card.get("selected_on")
    return Settings(
        names,
        threat,
        wanted.batch_size,
        request.seed,
        experts=model.experts,
        selected_on=selected_on if selected_on in ("validation", "test") else None,
        collapse_stops=wanted.gate_collapse == "stop",
        fast=request.fast,
    )
