"""A job's output as its command wrote it: without what Ray writes into the same file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

RAYS_OWN = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\t(INFO|WARNING) (job_manager|job_supervisor)\.py:\d+ -- "
    r"|Running entrypoint for job "
)
"""What its lines begin with, as of Ray 2.60: `tests/cluster` reads a real job's."""


def of_the_command(chunks: Iterable[str]) -> Iterator[str]:
    """Whole lines, as soon as they are whole; chunks end anywhere."""
    left = ""
    for chunk in chunks:
        *lines, left = (left + chunk).split("\n")
        yield from (f"{line}\n" for line in lines if not RAYS_OWN.match(line))
    if left and not RAYS_OWN.match(left):
        yield left
