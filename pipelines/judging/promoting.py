"""A promotion: evidence from the registry, the rules, one writer at a time."""

from __future__ import annotations

import re
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from fmoe import provenance
from fmoe.errors import UserError, first_line
from fmoe.evaluation import recorded
from fmoe.evaluation.promotion import REPORT, VERDICTS, Evidence, faults, not_better
from fmoe.tracking import registry, tags
from fmoe.tracking.registry import CANDIDATE, Entry


def decide(name: str, alias: str, force: str | None) -> dict[str, Any]:
    """What `fmoe promote --json` prints. Raises `UserError` for a model that is not there."""
    name = registry.checked_name(name)
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,63}", alias) or alias in (CANDIDATE, "latest"):
        raise UserError(f"--to {alias}: expected a name in small letters other than {CANDIDATE}")
    if force is not None and not force.strip():
        raise UserError("--force: give the reason; it is recorded")
    number = registry.aliased(name, CANDIDATE)
    if number is None:
        raise UserError(f"{name}: has no {CANDIDATE}; `fmoe train` and `fmoe tune` register one")

    def answer(promoted: bool, reason: str) -> dict[str, Any]:
        return {"promoted": promoted, "name": name, "version": number, "reason": reason}

    try:
        with registry.claimed(name):
            champion = registry.aliased(name, alias)
            if champion == number:
                return answer(False, f"is {alias} already")
            entries = {entry.number: entry for entry in registry.versions(name)}
            if number not in entries:
                return answer(False, "was not registered by fmoe: it has no digest")
            if champion is not None and champion not in entries and force is None:
                return answer(False, f"{alias} {champion} was not registered by fmoe: nothing to "
                                     "compare with (--force REASON)")  # fmt: skip
            against = why_not(entries[number], entries.get(champion or 0))
            if against and force is None:
                return answer(False, against)
            reason = f"forced: {force}" if against else why(champion)
            noted = {
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
                "before": str(champion or "none"),
                "reason": reason,
                "despite": against if against and force else "",
            }
            labels = {f"{tags.of_alias(alias)}{key}": value for key, value in noted.items()}
            holder = registry.crown(name, number, alias, labels)
            if holder != number:
                return answer(False, f"version {holder} was made {alias} at the same time")
            return answer(True, reason)
    except registry.Busy as busy:
        return answer(False, str(busy))


def why(champion: int | None) -> str:
    if champion is None:
        return "fully evaluated, no flag, and the first"
    return f"fully evaluated, no flag, and better than version {champion}"


def why_not(candidate: Entry, champion: Entry | None) -> str | None:
    """What speaks against the candidate; None where nothing does."""
    ours = evidence(candidate)
    if ours is None:
        uri = f"models:/{candidate.name}/{candidate.number}"
        return f"not evaluated: `fmoe evaluate {uri} --full`"
    reasons = faults(ours, provenance.git_revision())
    if reasons:
        return "; ".join(reasons)
    if champion is None:
        return None
    theirs = evidence(champion)
    if theirs is None:
        uri = f"models:/{champion.name}/{champion.number}"
        return f"the champion has no evaluation to compare with: `fmoe evaluate {uri} --full`"
    return not_better(ours, theirs)


def evidence(entry: Entry) -> Evidence | None:
    with tempfile.TemporaryDirectory() as aside:
        folder = registry.evaluation(entry, Path(aside))
        if folder is None:
            return None
        try:
            report = recorded.report(folder / REPORT)
            table = recorded.verdicts(folder / VERDICTS, report["images"])
            evidence = Evidence(entry.number, entry.tags[tags.DIGEST], report, table)
        except (OSError, ValueError, KeyError, MemoryError, pa.ArrowException) as error:
            raise UserError(
                f"{entry.name} version {entry.number}: its recorded evaluation is damaged "
                f"({first_line(error)}): evaluate it again"
            ) from None
        return evidence
