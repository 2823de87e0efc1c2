"""Each fault is really done to a run on two Ray hosts, and the run must complete.

| fault | what is done |
|---|---|
| a worker dies | SIGKILL |
| Ray Train's controller dies | SIGKILL |
| a node dies and another comes | all its processes killed at once, a node starts; fixed workers |
| a node is cut off | its link goes down, its processes are killed; elastic workers |
| a node is to be preempted | Ray is told to drain it, and it dies at the deadline; elastic |
| the disk is full | a tmpfs is filled before a checkpoint, and freed later |
| the driver dies | SIGKILL; the command again |
| the newest checkpoint is cut short | the driver's last file loses 100 bytes |
| the head dies | all its processes killed at once; a new head, the command again |
| S3 and MLflow are away | 503 from S3, the server killed; a minute later both are back |

Always asserted: every epoch was reported and is in MLflow once, the run is FINISHED, and all CPUs
are free afterwards. Where the number of workers stayed, the final weights are those of the
undisturbed run, bit for bit. Elastic runs come first: Ray keeps a killed run's claim on CPUs for
three minutes, and an elastic run takes what is unclaimed.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from tests.cluster.conftest import PYTHON, Cluster, assert_complete, wait_for


def test_node_cut_off(cluster: Cluster, undisturbed: dict[str, Any]) -> None:
    run = cluster.train("node-cut-off", "--workers", "1..2")
    run.wait_for_epoch(2)
    cluster.nodes[0].cut()
    time.sleep(2)
    cluster.nodes[0].kill()
    answer = run.finish()
    assert_complete(cluster, answer)
    assert "joint  1 worker, 32 images of a batch each" in run.text


def test_preemption_notice(cluster: Cluster, undisturbed: dict[str, Any]) -> None:
    epochs = 25  # telling Ray takes seconds, and the deadline comes eight later
    run = cluster.train("preempted", "--workers", "1..2", f"--set=joint.epochs={epochs}")
    run.wait_for_epoch(1)
    drain = f"""
import ray, time
from ray._raylet import GcsClient
from ray.core.generated import autoscaler_pb2
ray.init(address='auto', log_to_driver=False, logging_level='ERROR')
(node,) = [n for n in ray.nodes() if n['NodeManagerAddress'] == '{cluster.nodes[0].address}'
           and n['Alive']]
accepted, why = GcsClient(address=ray.get_runtime_context().gcs_address).drain_node(
    node['NodeID'], autoscaler_pb2.DrainNodeReason.Value('DRAIN_NODE_REASON_PREEMPTION'),
    'spot', int((time.time() + 8) * 1000))
assert accepted, why
"""
    told = cluster.head.run(PYTHON, "-c", drain, env=cluster.driver_env())
    assert told.returncode == 0, told.stderr
    time.sleep(8)
    cluster.nodes[0].kill()
    answer = run.finish()
    assert_complete(cluster, answer, epochs)
    assert "joint  1 worker, 32 images of a batch each" in run.text


def test_worker_controller_and_node_die(cluster: Cluster, undisturbed: dict[str, Any]) -> None:
    """One after another, in one run of two workers; another node comes."""
    run = cluster.train("three-die", "--workers", "2")
    run.wait_for_epoch(1)
    (worker,) = cluster.nodes[0].find("RayTrainWorker")
    os.kill(worker, signal.SIGKILL)
    run.wait_for_epoch(2)
    (controller,) = cluster.head.find("TrainController")
    os.kill(controller, signal.SIGKILL)
    run.wait_for_epoch(3)
    cluster.nodes[0].kill()
    cluster.start_node(cluster.nodes[0])
    answer = run.finish()
    assert_complete(cluster, answer)
    assert answer["digest"] == undisturbed["digest"]


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
    run.wait_for_line("No space left on device; trying again")
    time.sleep(5)
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


def test_head_dies(cluster: Cluster, undisturbed: dict[str, Any]) -> None:
    run = cluster.train("head-dies", "--workers", "2")
    run.wait_for_epoch(2)
    cluster.head.kill()
    for node in cluster.nodes:
        node.kill()  # without a head they would end by themselves a minute later
    cluster.restore()
    answer = cluster.train("head-dies", "--workers", "2").finish()
    assert_complete(cluster, answer)
    assert answer["digest"] == undisturbed["digest"]


def test_s3_and_mlflow_away_for_a_minute(cluster: Cluster, undisturbed: dict[str, Any]) -> None:
    run = cluster.train("outage", "--workers", "2")
    run.wait_for_epoch(1)
    cluster.outage.touch()
    for pid in cluster.services.find("mlflow"):
        os.kill(pid, signal.SIGKILL)
    time.sleep(60)
    assert run.driver.poll() is None, run.text
    cluster.start_mlflow()
    cluster.mlflow_up()
    cluster.outage.unlink()
    answer = run.finish()
    assert_complete(cluster, answer)
    assert answer["digest"] == undisturbed["digest"]
    assert "trying again" in run.text
