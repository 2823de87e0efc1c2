"""Whether every node sees the folders that a run keeps its files in."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fmoe.errors import UserError
from fmoe.storage.folder import Folder

ANSWER_SECONDS = 60.0  # for a busy node to answer


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def sees(folder: Folder, name: str) -> bool:
    return folder.exists(name)


def check(*folders: Folder) -> None:
    """Raises `UserError` where one is a node's own disk and there are several nodes: experts that
    one node has trained would not be found by another, hours later."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) > 1:
        for folder in folders:
            if folder.local is not None:
                seen_by(nodes, folder)


def seen_by(nodes: Sequence[Mapping[str, Any]], folder: Folder) -> None:
    """Raises `UserError` for a node that does not find there what is written from here."""
    name = f"seen-{secrets.token_hex(8)}"
    mark = folder / name
    mark.write("mark", b"")
    try:
        answers = {
            node["NodeManagerAddress"]: sees.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(mark, "mark")
            for node in nodes
        }
        for address, answer in answers.items():
            with suppress(RayError):  # a node that has died meanwhile will not miss it
                if not ray.get(answer, timeout=ANSWER_SECONDS):
                    raise UserError(
                        f"{folder.uri}: node {address} does not see it, and nodes share no disk: "
                        "give --storage (or FMOE_STORAGE) such as s3://bucket/fmoe, and no "
                        "--expert-store but such a one"
                    )
    finally:
        mark.delete()
