"""Whether every node sees the folder that a run keeps its files in."""

from __future__ import annotations

import secrets
from contextlib import suppress

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fmoe.errors import UserError
from fmoe.storage import Folder

SECONDS = 60.0  # for a busy node to answer


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def sees(folder: Folder, name: str) -> bool:
    return folder.exists(name)


def check(folder: Folder) -> None:
    """Raises `UserError` where the folder is a node's own disk and there are several nodes: experts
    that one node has trained would not be found by another, hours later."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if folder.local is None or len(nodes) < 2:
        return
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
                if not ray.get(answer, timeout=SECONDS):
                    raise UserError(
                        f"{folder.uri}: node {address} does not see it, and nodes share no disk: "
                        "give --storage (or FMOE_STORAGE) such as s3://bucket/fmoe"
                    )
    finally:
        mark.delete()
