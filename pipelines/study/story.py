"""What the pages of a study's run and of its trials' runs say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fmoe.markdown import block, code, paragraphs, table
from fmoe.model_card import Figures
from fmoe.tuning.search_space import Space
from fmoe.tuning.trials import Trial
from pipelines.study.display import baseline_line


def begun(space: Space, name: str, command: str) -> str:
    told = f"Study {code(name)}. Not finished yet: the same command with `--resume` goes on."
    return paragraphs(told, block(command, "sh"), what(space))


def ended(space: Space, command: str, report: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    """report: of the winner on the test images; answer: what `fmoe tune --json` prints."""
    figures, best = Figures.of(report), answer["best"]
    counts = ", ".join(f"{count} {status}" for status, count in answer["counts"].items() if count)
    beside = code(baseline_line(dict(answer))) if space.study.has_baseline else ""
    uri = best["model_uri"]
    return paragraphs(
        f"Trial {best['trial']}: {figures.headline()}" if figures else "",
        figures.table() if figures else "",
        figures.told_flags() if figures else "",
        f"Registered as {code(uri)}: {values(best['values'])}. Trials: {counts}.",
        beside,
        block(command, "sh"),
        what(space),
    )


def what(space: Space) -> str:
    """What is varied, for which metrics, within which budget."""
    study = space.study
    minutes = f" or {study.budget.minutes:g} minutes" if study.budget.minutes else ""
    wanted = ", ".join(f"{code(name)} ({way})" for name, way in study.metrics.items())
    rows = [[code(path), code(told(value))] for path, value in study.space.items()]
    return paragraphs(
        f"Recipe {code(study.recipe)}; {wanted}; {study.budget.trials} trials{minutes}; "
        f"{code(study.scheduler.kind)}, {code(study.searcher.kind)}.",
        table(["varied", "values"], rows),
    )


def told(value: Any) -> str:
    plain = value.model_dump(mode="json") if hasattr(value, "model_dump") else value
    return plain if isinstance(plain, str) else json.dumps(plain)


def values(chosen: Mapping[str, Any]) -> str:
    settings = ", ".join(code(f"{path} = {told(value)}") for path, value in chosen.items())
    return settings or "the recipe as it stands"


def of_trial(study: str, trial: Trial, judged: tuple[str, Figures | None] | None) -> str:
    """Of one that has ended. judged: as a finalist, on which images."""
    where, figures = judged or ("", None)
    line = f"Trial {trial.number} of study {code(study)}: {values(trial.values)}."
    epochs = len(trial.history)
    state = f"{trial.status.capitalize()}, {epochs} epoch{'s' if epochs != 1 else ''}."
    error = f"Error: {code(trial.error)}" if trial.error else ""
    if figures is None:
        return paragraphs(line, state, error)
    places = {"final_val": "validation images", "test": "the test images"}
    told = f"On {places.get(where, where)}: {figures.headline()}"
    return paragraphs(told, figures.table(), figures.told_flags(), line, state, error)
