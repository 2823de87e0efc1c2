"""An evaluation kept with the registered version that it is of."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from fmoe.tracking import find_version, read_only, registry
from pipelines.judging import Judged
from pipelines.reporting import write_report


def record(judged: Judged, answer: dict[str, Any]) -> None:
    """Says in `recorded` which version has it. A full evaluation is not replaced by a partial one,
    and nothing is recorded in a store that can only be read (which was said at the start).

    The page is made anew: what else is in the user's `--report` folder is none of the registry's.
    """
    if read_only():
        return
    version = find_version(judged.source)
    (entry,) = [e for e in registry.versions(version.name) if e.number == version.number]
    if entry.tags.get("fmoe.eval.full") == "true" and not answer["full"]:
        return
    with tempfile.TemporaryDirectory() as aside:
        write_report(judged, answer, Path(aside))
        registry.record_evaluation(version, entry.run_id, answer, Path(aside))
    answer["recorded"] = f"models:/{version.name}/{version.number}"
