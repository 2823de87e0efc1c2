"""A finished run's model in the registry: still there, or registered again from the folder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fmoe import model_card, model_folder, provenance, tracking
from fmoe.config import Config
from fmoe.errors import UserError
from fmoe.markdown import paragraphs
from fmoe.model_card import Figures
from fmoe.on_ray.session import driven_by
from fmoe.storage.folder import Folder
from fmoe.tracking import Tracker, finishing, registry, tags
from pipelines import origin


def kept(
    run: Folder, name: str, uri: str, digest: str, run_id: str, say: Callable[[str], None]
) -> tuple[str, str]:
    """The model's URI and the id of its MLflow run, both as the store has them now.

    A store that lost them, or is another than that of the training, gets them from the run's
    folder. Raises `UserError` for a folder that holds no model.
    """
    try:
        there = registry.holds(uri, digest)
        why = tracking.gone(tracking.client(), run_id)
    except UserError as error:
        say(f"whether {uri} is still registered was not looked up: {error}")
        return uri, run_id
    if there:
        if why:
            say(why)
        return uri, run_id
    say(f"{uri} is not in the registry of {tracking.shown()}: registering the model again")
    return registered(run, name, uri.removeprefix("models:/").rpartition("/")[0], run_id)


def registered(run: Folder, name: str, model_name: str, run_id: str) -> tuple[str, str]:
    network, config, card = model_folder.load_model(run / "model")
    report = card["metrics"]
    test = {"clean": report["clean"], **report["robust"], "worst_case": report["worst_case"]}
    labels = tags.tested(test) | tags.tested_on(report)
    labels |= {tags.DIGEST: card["sha256"], tags.DATA_DIGEST: card["data"]["digest"]}
    tracking.readiness.check()
    tracker = Tracker.start(name, config.flat(), tags.ours(driven_by()), run_id)
    with finishing(tracker), tempfile.TemporaryDirectory() as aside:
        if not tracker.found_again:
            tracker.describe(told(config, report))
            made = origin.labels("registered again", provenance.git_revision())
            for key, value in made.items():
                tracker.tag(key, value)
        for epoch in epochs(run):
            index = int(epoch.pop("epoch"))
            tracker.log(epoch, index)
        tracker.log({f"test_{key}": value for key, value in test.items()}, report["epoch"])
        tracker.log_json("evaluation.json", report)
        for file in model_folder.FILES:
            (Path(aside) / file).write_bytes((run / "model").read(file))
        model_folder.write_readme(Folder.at(aside), card, config)
        shape = tuple(card["input_shape"])
        version = tracker.register(network, Path(aside), model_name, shape, labels)
    return f"models:/{model_name}/{version}", tracker.run_id


def told(config: Config, report: Mapping[str, Any]) -> str:
    """Of a run whose own is lost."""
    figures = Figures.of(report)
    return paragraphs(
        figures.headline() if figures else "",
        figures.table() if figures else "",
        figures.told_flags() if figures else "",
        "Written again from the run's folder: this store had lost it, or never had it.",
        model_card.experts(config),
    )


def epochs(run: Folder) -> list[dict[str, float]]:
    if not run.exists("metrics.jsonl"):
        return []
    return [json.loads(line) for line in run.read("metrics.jsonl").decode().splitlines()]
