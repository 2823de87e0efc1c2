"""Jobs from a host that is no part of the cluster, over HTTP and with a token."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import EPOCHS, PYTHON, Cluster, wait_for


class Client:
    """`fmoe` on the client's host."""

    def __init__(self, cluster: Cluster, folder: Path):
        self.cluster, self.folder = cluster, folder
        self.env = {**cluster.env, "FMOE_HOME": str(folder / "home")}
        self.at = ("--address", cluster.dashboard)

    def command(self, *arguments: str) -> list[str]:
        return [PYTHON, "-m", "pipelines.cli", *arguments]

    def run(self, *arguments: str, code: int = 0, **env: str) -> str:
        done = self.cluster.client.run(*self.command(*arguments), env={**self.env, **env})
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr if code == 2 else done.stdout

    def json(self, *arguments: str) -> dict[str, Any]:
        (line,) = self.run(*arguments, "--json").splitlines()
        value: dict[str, Any] = json.loads(line)
        return value

    def run_of(self, job_id: str) -> dict[str, Any]:
        """The MLflow run that carries the job's id."""
        wanted = {"experiment_ids": ["1"], "filter": f"tags.`fmoe.job_id` = '{job_id}'"}
        (run,) = self.cluster.mlflow("runs/search", wanted)["runs"]
        return self.cluster.mlflow_run(run["info"]["run_id"])


@pytest.fixture
def client(cluster: Cluster, tmp_path: Path) -> Client:
    return Client(cluster, tmp_path)


def test_a_job_from_submission_to_the_pulled_model(
    client: Client, cluster: Cluster, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """Followed and left alone, its driver killed and its run reaped, stopped, and completed."""
    command = cluster.command("job", "--workers", "2")
    log = cluster.folder / "followed.log"
    following = cluster.client.start(
        *client.command("submit", *command, "--follow", *client.at),
        env={**client.env, "PYTHONUNBUFFERED": "1"},
        log=log,
    )
    wait_for(lambda: "joint  epoch 1 " in log.read_text(), 120, "the first epoch")
    for pid in cluster.client.find("--follow"):
        os.kill(pid, signal.SIGINT)
    only_ray_listens(cluster)
    assert following.wait(30) == 130
    assert "goes on without this terminal" in log.read_text()
    assert not re.search(r"\tINFO |\tWARNING |Running entrypoint", log.read_text()), log.read_text()
    (job, *_) = client.json("jobs", "list", *client.at)["jobs"]
    assert job["status"] == "RUNNING"
    for pid in cluster.head.find("pipelines.in_job"):
        os.kill(pid, signal.SIGKILL)
    run = client.run_of(job["job_id"])
    assert (run["status"], run["tags"]["fmoe.recipe"]) == ("RUNNING", "digits-whole")
    assert not run["tags"]["fmoe.git_revision"].startswith("unknown")
    wait_for(lambda: client.json("runs", "reap", *client.at)["reaped"], 20, "a run to reap")
    assert client.run_of(job["job_id"])["status"] == "KILLED"

    job_id = str(client.json("submit", *command, *client.at)["job_id"])
    wait_for(
        lambda: "joint  2 workers" in client.run("jobs", "logs", job_id, *client.at), 120, "workers"
    )
    assert client.json("runs", "reap", *client.at)["reaped"] == []
    assert client.json("jobs", "stop", job_id, *client.at)["status"] == "STOPPED"
    assert client.run_of(job_id)["status"] == "KILLED"

    answer = client.json("submit", *command, "--follow", *client.at)
    assert answer["status"] == "SUCCEEDED"
    run = client.run_of(answer["job_id"])
    assert (run["status"], run["steps"]) == ("FINISHED", list(range(EPOCHS)))
    pulled = client.json("pull", "models:/fmoe-digits@candidate", "--to", str(tmp_path / "model"))
    assert pulled["digest"] == undisturbed["digest"]
    statuses = [job["status"] for job in client.json("jobs", "list", *client.at)["jobs"]]
    assert statuses == ["SUCCEEDED", "STOPPED", "FAILED"]


def test_refused(client: Client, cluster: Cluster) -> None:
    wrong = client.run("jobs", "list", *client.at, code=2, RAY_AUTH_TOKEN="a" * 64)
    assert "asks for another token" in wrong
    assert cluster.env["RAY_AUTH_TOKEN"] not in wrong
    unknown = client.run("jobs", "status", "nonesuch", *client.at, code=2)
    assert "nonesuch: no such job" in unknown


def only_ray_listens(cluster: Cluster) -> None:
    """While a run is under way: beyond loopback, every listening port is of a Ray process."""
    code = """
import json, psutil
found = [(c.laddr.ip, c.laddr.port, ' '.join(psutil.Process(c.pid).cmdline()))
         for c in psutil.net_connections('tcp') if c.status == 'LISTEN' and c.pid]
print(json.dumps(found))
"""
    for host in (cluster.head, *cluster.nodes):
        done = host.run(PYTHON, "-c", code)
        open_ports = [
            (port, command)
            for address, port, command in json.loads(done.stdout)
            if not address.startswith("127.") and address != "::1"
        ]
        assert open_ports
        for port, command in open_ports:
            of_ray = re.search(r"\bray\b", command)
            worker_port = 10002 <= port <= 19999  # a driver's, which the raylet gives out
            assert of_ray or worker_port, (port, command)
