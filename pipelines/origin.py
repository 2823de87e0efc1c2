"""Who made an MLflow run, with which command and by which code: as MLflow's pages show it."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping

from fmoe import provenance
from fmoe.errors import plain
from fmoe.tracking import tags


def labels(source: str, revision: str) -> dict[str, str]:
    """Tags of a run. source: the command without its options; revision: the code's."""
    found = re.fullmatch(r"([0-9a-f]{40})(-dirty-.*)?", revision)
    commit = {tags.COMMIT: found[1]} if found else {}
    dirty = {tags.DIRTY: "true"} if found and found[2] else {}
    return {
        tags.USER: provenance.user(),
        tags.SOURCE: plain(source),
        tags.SOURCE_TYPE: "JOB" if os.environ.get("FMOE_JOB_ID") else "LOCAL",
        **commit,
        **dirty,
    }


def command(start: Iterable[str], options: Mapping[str, object]) -> str:
    """For the shell, an option a line. options: by name without dashes; True has no value,
    None and False are left out, of a list each."""
    lines = [shlex.join(start)]
    for name, value in options.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            if one is True:
                lines.append(f"--{name}")
            elif one is not None and one is not False:
                lines.append(shlex.join([f"--{name}", str(one)]))
    return " \\\n  ".join(lines)
