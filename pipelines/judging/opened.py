"""MODEL as a command was given it, opened: the network, and what is known of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fmoe import model_folder
from fmoe.assembly import MixtureSubject
from fmoe.config import Evaluate, fingerprint
from fmoe.data import Split
from fmoe.data.facts import Facts
from fmoe.data.held_out import check_classes
from fmoe.evaluation import inputs
from fmoe.evaluation.subject import Subject
from fmoe.locate import fixed, located
from pipelines.judging import python_model, robustbench_model
from pipelines.judging.python_model import PythonModel, code_digest, weights_digest
from pipelines.judging.robustbench_model import RobustBenchModel

PROBED = 8
"""Images."""


@dataclass(frozen=True)
class Opened:
    """A model to judge.

    name: as it was asked for; source: the same with the version's number in place of an alias.
    subject: how a worker makes `network` again. key: what tells its outputs from any other's.
    sha256: of its weights. wanted: how it is judged where nobody says otherwise. data: the data set
    that it was trained on (None: not known), and card what its `model.json` says (nothing for a
    model that has none). experts: their names.
    """

    name: str
    source: str
    network: nn.Module
    subject: Subject
    key: tuple[str, ...]
    sha256: str
    data: str | None = None
    wanted: Evaluate = field(default_factory=Evaluate)
    card: Mapping[str, Any] = field(default_factory=dict)
    experts: tuple[str, ...] = ()

    def fits(self, data: str, facts: Facts) -> list[str]:
        """A flag where it knows the classes by other names than this data set. Raises `UserError`
        where its card says that it cannot be judged on that at all."""
        return check_classes(self.card, data, facts, self.name) if self.card else []

    def answers(self, test: Split) -> str:
        """What it says of the first images, as a digest, where it has no card: code may be changed
        in files that `key` does not know of. Raises `UserError` where it cannot be asked."""
        if self.card:
            return ""
        ready, x = inputs.classifier(self.network, test), test[:PROBED].pixels()
        with torch.no_grad():
            said: Tensor = ready(x)
        return hashlib.sha256(said.float().numpy(force=True).tobytes()).hexdigest()


def opened(model: str) -> Opened:
    """A model folder, a run folder, a registry URI or the name of code. Raises `UserError`."""
    if model.startswith(python_model.PREFIX):
        return foreign(model, PythonModel.named(model))
    if model.startswith(robustbench_model.PREFIX):
        board = RobustBenchModel.named(model)
        return replace(foreign(model, board), wanted=board.wanted)
    source = fixed(model)
    with located(source) as folder:
        network, config, card = model_folder.load_model(folder)
    facts = model_folder.facts_of(card)
    return Opened(
        name=model,
        source=source,
        network=network,
        subject=MixtureSubject(config, facts),
        key=(card["sha256"], card["config_sha256"], fingerprint(facts.plain())),
        sha256=card["sha256"],
        data=config.data.name,
        wanted=config.evaluate,
        card=card,
        experts=config.experts.names,
    )


def foreign(model: str, subject: Subject) -> Opened:
    """What is no mixture of ours: its code decides, and nothing is known of its training."""
    network = subject.build()
    weights = weights_digest(network)
    return Opened(
        name=model,
        source=model,
        network=network,
        subject=subject,
        key=(model, weights, code_digest(network)),
        sha256=weights,
    )
