"""Each fault is really done to a run on two Ray hosts or three, and the run must complete.

| fault | what is done |
|---|---|
| a node is cut off | its link goes down, its processes are killed; elastic workers |
| a node is to be preempted | Ray is told to drain it, and it dies at the deadline; elastic |
| a worker dies | SIGKILL |
| Ray Train's controller dies | SIGKILL |
| a node dies and another comes | all its processes killed at once, a node starts; fixed workers |
| the disk is full | a tmpfs is filled before a checkpoint, and freed later |
| the driver dies | SIGKILL; the command again |
| the newest checkpoint is cut short | the driver's last file loses 100 bytes |
| the head dies | all its processes killed at once; a new head, the command again |
| S3 is away | 503 until workers have waited three times, longer than S3's client tries |
| MLflow is away | the server killed; started again when epochs could not be logged |

Of a run with several faults each is recovered from, with an epoch reported, before the next is
done. Always asserted: every epoch was reported and is in MLflow once, the run is FINISHED, and all
CPUs are free afterwards. Where the number of workers stayed, the final weights are those of the
undisturbed run, bit for bit. The elastic run comes first: Ray keeps a killed run's claim on CPUs
for three minutes, and an elastic run takes what is unclaimed.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from tests.cluster.conftest import PYTHON, STATE, Cluster, assert_complete, wait_for
from tests.cluster.network import Host

DEADLINE = 5  # seconds from a notice to the node's end
COORDINATOR = 20  # seconds between two looks of Ray's coordinator of elastic workers at the nodes


def test_node_cut_off_and_another_preempted(cluster: Cluster, undisturbed: dict[str, Any]) -> None:
    """One after the other, in one elastic run: three workers, two, one."""
    epochs = 20  # telling Ray takes seconds, and the deadline comes five later
    cluster.start_node(cluster.spare)
    wait_for(lambda: cluster.whole(spare=1), 60, "the third node")
    time.sleep(COORDINATOR)
    run = cluster.train("elastic", "--workers", "1..3", f"--set=joint.epochs={epochs}")
    run.wait_for_try(1)
    assert "joint  3 workers, 11 images of a batch each" in run.text
    cluster.nodes[0].cut()
    time.sleep(2)
    cluster.nodes[0].kill()
    run.wait_for_try(2)
    assert "joint  2 workers, 16 images of a batch each" in run.text
    assert inside(cluster, "elastic") == []
    told = cluster.head.run(PYTHON, "-c", drained(cluster.spare), env=cluster.driver_env())
    assert told.returncode == 0, told.stderr
    told_at = time.monotonic()
    wait_for(lambda: inside(cluster, "elastic"), DEADLINE, "a checkpoint on notice")
    time.sleep(max(0.0, told_at + DEADLINE - time.monotonic()))
    assert run.driver.poll() is None, run.text
    cluster.spare.kill()
    answer = run.finish()
    assert_complete(cluster, answer, epochs)
    assert "joint  1 worker, 32 images of a batch each" in run.text


def inside(cluster: Cluster, name: str) -> list[str]:
    """Checkpoints inside of epochs, of a run in the store."""
    code = f"""
from fmoe.storage.folder import Folder
print(*Folder.at({cluster.storage(f"runs/runs/{name}/joint")!r}).names())
"""
    done = cluster.head.run(PYTHON, "-c", code, env=cluster.driver_env())
    assert done.returncode == 0, done.stderr
    return [found for found in done.stdout.split() if "-step-" in found]


def drained(host: Host) -> str:
    """Code that tells Ray of the host's preemption."""
    return f"""
{STATE}
import time
from ray._raylet import GcsClient
from ray.core.generated import autoscaler_pb2
(node,) = [n for n in state.node_table() if n['NodeManagerAddress'] == '{host.address}'
           and n['Alive']]
accepted, why = GcsClient(address=os.environ['RAY_ADDRESS']).drain_node(
    node['NodeID'], autoscaler_pb2.DrainNodeReason.Value('DRAIN_NODE_REASON_PREEMPTION'),
    'spot', int((time.time() + {DEADLINE}) * 1000))
assert accepted, why
"""


def test_worker_controller_node_and_driver_die(cluster: Cluster) -> None:
    """One after another, in one run of two workers that hold two experts and one; another node
    comes."""
    command = "--workers", "2", "--set=parallel.expert=2"
    alone = cluster.train("shared-undisturbed", *command).finish()
    run = cluster.train("shared", *command)
    run.wait_for_try(1)
    assert "joint  2 workers, the experts shared out among 2, 32 images" in run.text
    (worker,) = cluster.nodes[0].find("RayTrainWorker")
    os.kill(worker, signal.SIGKILL)
    run.wait_for_try(2)
    (controller,) = cluster.head.find("TrainController")
    os.kill(controller, signal.SIGKILL)
    run.wait_for_try(3)
    cluster.nodes[0].kill()
    cluster.start_node(cluster.nodes[0])
    run.wait_for_try(4)
    run.kill_driver()
    wait_for(cluster.whole, 60, "the killed driver's CPUs")
    answer = cluster.train("shared", *command).finish()
    assert_complete(cluster, answer)
    assert answer["digest"] == alone["digest"]


def test_disk_full_driver_killed_checkpoint_truncated(
    cluster: Cluster, undisturbed: dict[str, Any]
) -> None:
    """The storage is a disk of 16 MB that both hosts mount."""
    disk = cluster.small_disk
    command = ("disk-full", "--workers", "2")
    run = cluster.train(*command, storage=str(disk))
    run.wait_for_epoch(1)
    with pytest.raises(OSError, match="No space left"):
        (disk / "filler").write_bytes(bytes(2**25))
    run.wait_for_line("No space left on device; trying again", 2)
    reported = run.text.count("joint  epoch")
    (disk / "filler").unlink()
    run.wait_for_epoch(reported + 1)

    run.kill_driver()
    wait_for(cluster.whole, 60, "the killed driver's CPUs")
    newest = max((disk / "runs/disk-full/joint").glob("epoch-*/state.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-100])
    answer = cluster.train(*command, storage=str(disk)).finish()
    assert_complete(cluster, answer)
    assert answer["digest"] == undisturbed["digest"]


def test_head_dies_and_s3_and_mlflow_are_away(
    cluster: Cluster, undisturbed: dict[str, Any]
) -> None:
    """One after the other, in one run; MLflow is away for longer than S3."""
    run = cluster.train("head-dies", "--workers", "2")
    run.wait_for_try(1)
    cluster.head.kill()
    for node in cluster.nodes:
        node.kill()  # without a head they would end by themselves a minute later
    cluster.restore()
    run = cluster.train("head-dies", "--workers", "2")
    run.wait_for_try(2)

    cluster.outage.touch()
    for pid in cluster.services.find("mlflow"):
        os.kill(pid, signal.SIGKILL)
    run.wait_for_line("s3://.*trying again", 3)
    reported = run.text.count("joint  epoch")
    cluster.outage.unlink()
    run.wait_for_line("joint  epoch", reported + 1)
    cluster.start_mlflow()
    cluster.mlflow_up()
    answer = run.finish()
    assert_complete(cluster, answer)
    assert answer["digest"] == undisturbed["digest"]
