"""Descriptions of registered models and versions, out of what the version's tags say.

Anybody who may write to the registry can have written a tag: what makes no sense is left out, and
the rest is text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from fmoe.evaluation import stages
from fmoe.markdown import block, code, paragraphs
from fmoe.model_card import PAPER, Figures
from fmoe.tracking.tags import EVALUATED_FULL, EVALUATION, PREFIX, TEST, TESTED

MARK = "<!-- written by fmoe, and again when there is news; without this line it stays as it is -->"
"""Ends every description of ours."""
CELLS = re.compile(r"\| (?!---).* \|")
"""A row of a table, in which names are code spans without a `|`."""
LONGEST = 4900
"""Of a description, whose limit is 5,000 characters where the store is a database server."""


def ours(text: str) -> str:
    """With the mark, and cut at a paragraph where it is too long. MLflow's tables have no space
    between their columns."""
    text = "\n".join(spaced(line) if CELLS.fullmatch(line) else line for line in text.split("\n"))
    while len(text) > LONGEST - len(MARK):
        shorter = text.rpartition("\n\n")[0]
        text = shorter or text[: LONGEST - len(MARK) - 1]
    return f"{text}\n\n{MARK}\n"


def spaced(row: str) -> str:
    return row.replace(" | ", " &nbsp; | ")


def replaceable(text: str | None) -> bool:
    """Whether a description is ours, or none."""
    return not text or text.rstrip().endswith(MARK)


def of_model(name: str) -> str:
    """The paragraph of a registered model."""
    return ours(
        f"Classifiers of images that were trained to hold up against adversarial examples, by fmoe "
        f"after {PAPER}. The newest has the alias `candidate`; `fmoe promote` gives `champion` to "
        f"one that was evaluated in full, raised no flag and is surely better. {code(name)} is "
        "listed by `fmoe models show`, and `fmoe pull` fetches a version, checked."
    )


def of_version(name: str, number: int, tags: Mapping[str, str]) -> str:
    """Its figures, the newest first, its promotions, and how to have it."""
    judged, trained = evaluated(tags), tested(tags)
    best = judged or trained
    uri = f"models:/{name}/{number}"
    parts = [] if best is None else [best.headline(), best.table(), best.told_flags()]
    if judged:
        how = "full protocol" if tags.get(EVALUATED_FULL) == "true" else "a part of the protocol"
        parts.append(f"By `fmoe evaluate` ({how}), {code(tags.get(f'{EVALUATION}at', '?'))}.")
    elif trained:
        parts.append("By training's own evaluation; `fmoe evaluate --full` is stronger.")
    parts += promotions(tags)
    fetched = f"fmoe.load({uri!r})   # or: fmoe pull {json.dumps(uri)} --to model"
    return ours(paragraphs(*parts, block(fetched, "python")))


def tested(tags: Mapping[str, str]) -> Figures | None:
    """What training's own evaluation found."""
    return figures(
        {key.removeprefix(TEST): value for key, value in tags.items() if key.startswith(TEST)},
        {key.removeprefix(TESTED): value for key, value in tags.items() if key.startswith(TESTED)},
    )


def evaluated(tags: Mapping[str, str]) -> Figures | None:
    """What the recorded evaluation found."""
    said = {key.removeprefix(EVALUATION): value for key, value in tags.items()
            if key.startswith(EVALUATION)}  # fmt: skip
    return figures(said, said)


def figures(accuracies: Mapping[str, str], about: Mapping[str, str]) -> Figures | None:
    """None where the tags do not say all that the figures mean."""
    order = [*(attack.name for attack in stages.ATTACKS)]
    report: dict[str, Any] = {**about}
    try:
        for key in ("clean", "worst_case"):
            report[key] = float(accuracies[key])
        report["robust"] = {name: float(accuracies[name]) for name in order if name in accuracies}
        report["flags"] = json.loads(about.get("flags", "[]"))
    except (KeyError, ValueError, RecursionError):
        return None
    return Figures.of(report)


def promotions(tags: Mapping[str, str]) -> list[str]:
    """A sentence for each alias that it was given."""
    since = re.compile(rf"{re.escape(PREFIX)}([a-z][a-z0-9_-]{{0,63}})\.since")
    told = []
    for key in sorted(tags):
        match = since.fullmatch(key)
        if match is None:
            continue
        own = {name: tags.get(f"{PREFIX}{match[1]}.{name}", "") for name in ("reason", "despite")}
        despite = f", despite {code(own['despite'])}" if own["despite"] else ""
        told.append(f"Made {code(match[1])} at {code(tags[key])}: {code(own['reason'])}{despite}.")
    return told
