"""The page of a training's own evaluation, out of what it found: nothing more is attacked."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fmoe.assembly import MixtureSubject
from fmoe.config import Config
from fmoe.data import Data, Images
from fmoe.data.held_out import HeldOut
from fmoe.evaluation import Evaluation
from fmoe.evaluation.kept import Kept
from fmoe.models.mixture import Mixture
from fmoe.storage.folder import Folder
from pipelines.judging.opened import Opened
from pipelines.judging.reporting import write_page
from pipelines.judging.run import Judged

NOT_LOOKED_FOR = "`fmoe evaluate` does"


def write(
    name: str,
    model: Mixture,
    config: Config,
    card: Mapping[str, Any],
    data: Data[Images],
    evaluation: Evaluation,
    folder: Path,
) -> Path:
    """index.html and what stands beside it. name: the run's; card: the model's `model.json`."""
    classes = len(data.facts.classes)
    images = HeldOut(
        name=data.name,
        facts=data.facts,
        test=data.test,
        per_class=torch.bincount(evaluation.labels, minlength=classes).tolist(),
        test_digest=data.test_digest,
        digest=data.digest,
        leaked=None,
        unread=NOT_LOOKED_FOR,
    )
    opened = Opened(
        name=name,
        source=name,
        network=model,
        subject=MixtureSubject(config, data.facts),
        key=(card["sha256"],),
        sha256=card["sha256"],
        data=config.data.name,
        wanted=config.evaluate,
        card=card,
        experts=config.experts.names,
    )
    wanted, test = config.evaluate.images, data.test[: evaluation.images].held()
    with tempfile.TemporaryDirectory() as nothing:
        kept = Kept(Folder.at(nothing))
        judged = Judged(opened, images, test, wanted, evaluation, kept)
        return write_page(judged, judged.to_json(), None, folder)
