"""An evaluation kept with the registered version that it is of."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from fmoe.tracking import find_version, registry
from pipelines.judging import Judged
from pipelines.reporting import write_report


def record(judged: Judged, answer: dict[str, Any], report: Path | None) -> None:
    """Says in `recorded` which version has it. A full evaluation is not replaced by a partial one.

    report: the folder that was written, if one was.
    """
    version = find_version(judged.name)
    (entry,) = [e for e in registry.versions(version.name) if e.number == version.number]
    if entry.tags.get("fmoe.eval.full") == "true" and not answer["full"]:
        return
    with tempfile.TemporaryDirectory() as aside:
        folder = report or Path(aside)
        if report is None:
            write_report(judged, answer, folder)
        registry.record_evaluation(version, entry.run_id, answer, folder)
    answer["recorded"] = f"models:/{version.name}/{version.number}"
