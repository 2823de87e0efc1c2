"""A Ray cluster of two hosts, a host for services (S3, MLflow), and one that only submits."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.cluster import network
from tests.cluster.network import Host, Network
from tests.conftest import SMALL

EPOCHS = 10
TRAIN = [
    *SMALL,
    f"joint.epochs={EPOCHS}",
    "data.train_images=128",
    "joint.validation.attack.steps=1",
    "joint.batch_size=32",
    "experts.train.batch_size=32",
    "data.val_images=700",
    "evaluate.images=32",
    "evaluate.attacks=[fgsm]",
]
PYTHON = sys.executable
RAY = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    # a lost node is noticed in seconds
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
    "PYTHONDONTWRITEBYTECODE": "",  # or each of a hundred processes would compile fmoe again
    "PATH": f"{Path(PYTHON).parent}:{os.environ['PATH']}",
}

STATE = """
import os
from ray._private.state import state
from ray._raylet import GcsClientOptions
state._initialize_global_state(GcsClientOptions.create(
    os.environ['RAY_ADDRESS'], None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False))
"""
"""Ray's own view of the cluster, without joining it as a driver."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = network.why_not()
    for item in items:
        if "tests/cluster" in str(item.path):
            item.add_marker(pytest.mark.timeout(600))
        if reason and "tests/cluster" in str(item.path):
            item.add_marker(pytest.mark.skip(reason=reason))


def wait_for(what: Callable[[], Any], seconds: float, name: str) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, f"{name} did not come within {seconds} s"
        time.sleep(0.1)
    return value


@dataclass
class Cluster:
    """head: one CPU, and where drivers run. nodes, and the spare one that a test may start: one CPU
    each. client: no Ray at all."""

    network: Network
    head: Host
    nodes: list[Host]
    spare: Host
    services: Host
    client: Host
    folder: Path

    @property
    def env(self) -> dict[str, str]:
        return {**RAY, "MLFLOW_TRACKING_URI": f"http://{self.services.address}:5000"}

    @property
    def dashboard(self) -> str:
        return f"http://{self.head.address}:8265"

    @property
    def small_disk(self) -> Path:
        return self.folder / "disk"

    @property
    def outage(self) -> Path:
        return self.folder / "s3-outage"

    def storage(self, name: str) -> str:
        at = f"{self.services.address}:5555"
        return f"s3://bucket/{name}?endpoint_override={at}&scheme=http&region=us-east-1"

    def start_s3(self) -> None:
        self.services.start(
            *(PYTHON, "-m", "tests.cluster.s3_server", self.services.address, "5555", self.outage),
            log=self.folder / "s3.log",
        )
        bucket = f"'http://{self.services.address}:5555/bucket', method='PUT'"
        code = f"import urllib.request as r; r.urlopen(r.Request({bucket}))"

        def made() -> bool:
            return self.services.run(PYTHON, "-c", code).returncode == 0

        wait_for(made, 30, "S3")

    def start_mlflow(self) -> subprocess.Popen[str]:
        """Its port is open as soon as this returns; see `mlflow_up`."""
        at, folder = self.services.address, self.folder / "mlflow"
        folder.mkdir(exist_ok=True)
        return self.services.start(
            *(PYTHON, "-m", "mlflow", "server", "--host", at, "--port", "5000", "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
            *("--artifacts-destination", folder / "artifacts", "--allowed-hosts", f"{at}:5000"),
            env={
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"
            },  # six processes that we do not need
            log=self.folder / "mlflow.log",
        )

    def mlflow_up(self) -> None:
        code = f"import urllib.request as r; r.urlopen('{self.env['MLFLOW_TRACKING_URI']}/health')"
        wait_for(lambda: self.services.run(PYTHON, "-c", code).returncode == 0, 90, "MLflow")

    def start_head(self) -> None:
        self.head.start(
            *("ray", "start", "--head", "--block", f"--node-ip-address={self.head.address}"),
            *("--port=6379", f"--dashboard-host={self.head.address}", "--num-cpus=1"),
            "--include-log-monitor=False",  # drivers do not ask for logs
            "--object-store-memory=200000000",
            env=self.node_env(self.head),
            log=self.folder / "head.log",
        )

    def start_node(self, host: Host) -> None:
        host.start(
            *("ray", "start", "--block", f"--address={self.head.address}:6379"),
            *(f"--node-ip-address={host.address}", "--num-cpus=1", "--include-log-monitor=False"),
            "--object-store-memory=200000000",
            env=self.node_env(host),
            log=self.folder / f"{host.name}.log",
        )

    def node_env(self, host: Host) -> dict[str, str]:
        """FMOE_HOME: no two hosts share one."""
        return {**self.env, "FMOE_HOME": str(self.folder / f"home-{host.name}")}

    def whole(self, seconds: float = 15, spare: int = 0) -> bool:
        """All CPUs are there and free, within so many seconds: asked by one process, which is no
        driver, or Ray would start workers for it on both hosts."""
        cpus = 1 + len(self.nodes) + spare
        code = f"""
{STATE}
import sys, time
deadline = time.monotonic() + {seconds}
while time.monotonic() < deadline:
    told = state.cluster_resources().get('CPU'), state.available_resources().get('CPU')
    if told == ({cpus}, {cpus}):
        sys.exit()
    time.sleep(0.2)
sys.exit(1)
"""
        return self.head.run(PYTHON, "-c", code, env=self.driver_env()).returncode == 0

    def restore(self) -> None:
        """Every host up, linked and idle again."""
        self.spare.kill()
        for host in (self.head, *self.nodes):
            host.mend()
        if not self.head.find("gcs_server"):
            self.start_head()
        for node in self.nodes:
            if not node.find("raylet/raylet"):
                node.kill()
                self.start_node(node)
        wait_for(self.whole, 90, "the whole cluster")

    def driver_env(self) -> dict[str, str]:
        return {**self.node_env(self.head), "RAY_ADDRESS": f"{self.head.address}:6379"}

    def command(self, name: str, *more: str, storage: str | None = None) -> list[str]:
        """Runs of all names share one expert store."""
        overrides = [f"--set={override}" for override in TRAIN]
        return [
            *("train", "digits-whole", *overrides, "--name", name, "--json"),
            *("--storage", storage or self.storage("runs")),
            *("--expert-store", self.storage("experts"), *more),
        ]

    def train(self, name: str, *more: str, storage: str | None = None) -> Run:
        """`fmoe train` on the head, which drives the cluster."""
        log = self.folder / f"{name}.log"
        command = self.command(name, *more, storage=storage)
        driver = self.head.start(
            *(PYTHON, "-m", "pipelines.cli", *command), env=self.driver_env(), log=log
        )
        return Run(self, driver, log)

    def mlflow(self, path: str, body: dict[str, Any] | None = None, **query: str) -> dict[str, Any]:
        """The server's answer to the client's host: of a search, which has a body, or a look."""
        at = f"{self.env['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/{path}?{urlencode(query)}"
        data = json.dumps(body).encode() if body else None
        code = f"""
from urllib.request import Request, urlopen
asked = Request({at!r}, {data!r}, {{'Content-Type': 'application/json'}})
print(urlopen(asked).read().decode())
"""
        done = self.client.run(PYTHON, "-c", code)
        assert done.returncode == 0, done.stderr
        value: dict[str, Any] = json.loads(done.stdout)
        return value

    def mlflow_run(self, run_id: str) -> dict[str, Any]:
        """Status, and the steps at which the validation's robust accuracy was logged."""
        run = self.mlflow("runs/get", run_id=run_id)["run"]
        history = self.mlflow("metrics/get-history", run_id=run_id, metric_key="val_robust")
        steps = sorted(int(metric.get("step", 0)) for metric in history.get("metrics", []))
        tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
        return {"status": run["info"]["status"], "steps": steps, "tags": tags}


@dataclass
class Run:
    """A driver on the head host and its output."""

    cluster: Cluster
    driver: subprocess.Popen[str]
    log: Path

    @property
    def text(self) -> str:
        return self.log.read_text()

    def wait_for_epoch(self, number: int) -> None:
        """Until the joint phase's epoch (from 1) was reported."""
        self.wait_for_line(rf"joint  epoch {number} ")

    def wait_for_try(self, number: int) -> None:
        """Until the joint phase has begun so many times, and has reported an epoch since."""

        def reported() -> bool:
            tries = re.split(r"joint  \d workers?,", self.text)[number:]
            return any("joint  epoch" in text for text in tries)

        self._wait_for(reported, f"an epoch of try {number}", 120)

    def wait_for_line(self, pattern: str, times: int = 1) -> None:
        def there() -> bool:
            return len(re.findall(pattern, self.text)) >= times

        self._wait_for(there, f"{pattern!r} ({times} times)", 120)

    def _wait_for(self, what: Callable[[], bool], name: str, seconds: float) -> None:
        def there() -> bool:
            assert self.driver.poll() is None, self.text
            return what()

        try:
            wait_for(there, seconds, name)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.text}") from None

    def finish(self, seconds: float = 240) -> dict[str, Any]:
        """What `--json` printed."""
        try:
            code = self.driver.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not done after {seconds} s: {self.text}") from None
        assert code == 0, self.text
        answer: dict[str, Any] = json.loads(self.text.splitlines()[-1])
        return answer

    def kill_driver(self) -> None:
        for pid in self.cluster.head.find(f"--name {self.log.stem} "):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        self.driver.wait()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A filesystem of 16 MB, mounted before the hosts come so that they see it."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="session")
def cluster_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    with small_disk(folder / "disk"), Network() as net:
        head, services, client = net.host("head"), net.host("services"), net.host("client")
        nodes = [net.host("node")]
        cluster = Cluster(net, head, nodes, net.host("spare"), services, client, folder)
        cluster.start_mlflow()
        cluster.start_head()
        cluster.start_s3()
        wait_for(lambda: head.find("gcs_server"), 30, "Ray's head")
        cluster.restore()
        cluster.mlflow_up()
        yield cluster


@pytest.fixture
def cluster(cluster_once: Cluster) -> Iterator[Cluster]:
    """Whole and idle before the test, and it must be so again after it."""
    yield cluster_once
    cluster_once.restore()


@pytest.fixture(scope="session")
def undisturbed(cluster_once: Cluster) -> dict[str, Any]:
    """The answer of a run to which nothing happens; it also fills the expert store."""
    return cluster_once.train("undisturbed", "--workers", "2").finish()


def assert_complete(cluster: Cluster, answer: dict[str, Any], epochs: int = EPOCHS) -> None:
    """No epoch is missing anywhere, and MLflow tells the truth."""
    assert answer["epochs"] == epochs
    run = cluster.mlflow_run(answer["run_id"])
    assert run["status"] == "FINISHED"
    assert run["steps"] == list(range(epochs))
