"""An evaluation kept with the registered version that it is of."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from fmoe.evaluation.promotion import foreign
from fmoe.paths import home
from fmoe.tracking import find_version, read_only, registry, tags
from pipelines.judging.reporting import write_report
from pipelines.judging.run import Judged


def record(judged: Judged, answer: dict[str, Any]) -> None:
    """Says in `recorded` which version has it, or in `not_recorded` why none has.

    One on other images than the test images of the model's own data set is not kept: its figures
    would be taken for figures on these. A full evaluation is not replaced by a partial one. The
    page is made anew: what else is in the user's `--report` folder is none of the registry's.
    """
    if read_only():
        answer["not_recorded"] = f"{home()} cannot be written"
        return
    version = find_version(judged.model.source)
    (entry,) = [e for e in registry.versions(version.name) if e.number == version.number]
    why = foreign(answer)
    if why is None and entry.tags.get(tags.EVALUATED_FULL) == "true" and not answer["full"]:
        why = "the version has a full evaluation, and this is a partial one"
    if why is not None:
        answer["not_recorded"] = why
        return
    with tempfile.TemporaryDirectory() as aside:
        write_report(judged, answer, Path(aside))
        registry.record_evaluation(version, entry.run_id, answer, Path(aside))
    answer["recorded"] = f"models:/{version.name}/{version.number}"
