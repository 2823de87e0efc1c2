"""Worker, controller, node and driver in turn, killed at a random moment of a run.

FMOE_KILLS=10 make test-cluster does it ten times; without it none, since test_faults.py kills each
of them once. FMOE_KILLS_SEED draws other moments.
"""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

import pytest

from tests.cluster.conftest import Cluster, Run, assert_complete, wait_for

KILLS = int(os.environ.get("FMOE_KILLS", "0"))
SEED = int(os.environ.get("FMOE_KILLS_SEED", "0"))


def kill(what: str, cluster: Cluster, run: Run) -> None:
    if what == "driver":
        run.kill_driver()
    elif what == "node":
        cluster.nodes[0].kill()
    else:
        os.kill(found(what, cluster)[0], signal.SIGKILL)


def found(what: str, cluster: Cluster) -> list[int]:
    """Ray Train's processes of that kind on all hosts."""
    title = {"worker": "RayTrainWorker", "controller": "TrainController"}[what]
    return [pid for host in (cluster.head, *cluster.nodes) for pid in host.find(title)]


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_at_a_random_moment(
    number: int, cluster: Cluster, undisturbed: dict[str, Any]
) -> None:
    """From the experts' end on; workers and controller from their start on."""
    what = ("worker", "controller", "node", "driver")[number % 4]
    name = f"kill-{number}-{what}"
    run = cluster.train(name, "--workers", "2")
    run.wait_for_line("experts: ")
    seconds = 30
    if what in ("worker", "controller"):
        wait_for(lambda: found(what, cluster), 60, what)
        seconds = 18
    moment = random.Random(f"{SEED}-{number}").uniform(0, seconds)
    time.sleep(moment)
    reported = run.text.count("joint  epoch")
    kill(what, cluster, run)
    if what == "node":
        cluster.start_node(cluster.nodes[0])
    if what == "driver":
        wait_for(cluster.whole, 60, "the killed driver's CPUs")
        run = cluster.train(name, "--workers", "2")
    answer = run.finish()
    print(f"{what} killed after {moment:.1f} s, {reported} epochs reported")
    assert_complete(cluster, answer)
    assert answer["digest"] == undisturbed["digest"]
    assert run.text.count("joint  epoch") >= 5
    wait_for(cluster.whole, 60, "free CPUs")
    for host in (cluster.head, *cluster.nodes):
        orphans = [pid for title in ("RayTrainWorker", "TrainController", "--name kill-")
                   for pid in host.find(title)]  # fmt: skip
        assert orphans == []
