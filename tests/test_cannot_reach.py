"""A Ray cluster that cannot be reached: one line with the address and a remedy, exit code 2, soon.

Real commands against real listeners; none of them starts Ray.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from fmoe import assembly, config, model_folder
from fmoe.storage.folder import Folder
from tests.cluster import network
from tests.conftest import SMALL

LIMIT = 30.0  # what users are promised
ROOT = Path(__file__).parent.parent


def fmoe(*arguments: str, env: dict[str, str]) -> tuple[list[str], float]:
    """The lines of stderr of a command that must be refused, and its seconds."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_TOKEN": "a" * 64, **env}
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        capture_output=True, text=True, env=environment, check=False, timeout=120,
    )  # fmt: skip
    took = time.monotonic() - begin
    assert (done.returncode, done.stdout) == (2, ""), done.stdout + done.stderr
    return done.stderr.splitlines(), took


@contextmanager
def listening(answer: bytes | None) -> Iterator[int]:
    """The port of a server that says `answer` and hangs up, or (None) never says anything.

    On all interfaces: Ray takes localhost for this machine's own address.
    """
    with socket.create_server(("0.0.0.0", 0)) as server:

        def serve() -> None:
            while answer is not None:
                try:
                    connection, _ = server.accept()
                except OSError:  # closed
                    return
                with connection:
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


class Page(BaseHTTPRequestHandler):
    """Any web site: a page where one is asked for, and nothing of Ray's."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def web_site() -> Iterator[int]:
    with ThreadingHTTPServer(("0.0.0.0", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@contextmanager
def closed() -> Iterator[int]:
    """A port where nothing listens: bound, so that nobody else takes it."""
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        yield taken.getsockname()[1]


SERVERS = {
    "closed": (closed, "Connection refused"),
    "silent": (lambda: listening(None), "no answer in 8 seconds"),
    "ssh": (lambda: listening(b"SSH-2.0-OpenSSH_9.2\r\n"), "what answers is no head of a cluster"),
    "web": (web_site, "what answers is no head of a cluster"),
    "hangs up": (lambda: listening(b""), "no Ray cluster can be reached"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder, as `evaluate` and `compare` take it."""
    small = config.load("digits-whole", SMALL)
    folder = tmp_path_factory.mktemp("model")
    weights = assembly.mixture(small).state_dict()
    model_folder.save_model(
        Folder.at(folder), weights, small, data_digest="abc", metrics={}, extra={}
    )
    return str(folder)


@pytest.mark.parametrize("server", SERVERS)
def test_what_listens_is_no_cluster(server: str) -> None:
    start, gist = SERVERS[server]
    with start() as port:
        address = f"127.0.0.1:{port}"
        lines, took = fmoe("train", "digits", env={"RAY_ADDRESS": address})
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"fmoe: RAY_ADDRESS={address} (")
    assert gist in lines[0]
    assert "unset RAY_ADDRESS" in lines[0]
    assert took < LIMIT


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("command", ["train", "tune", "evaluate", "compare"])
def test_every_command_that_needs_ray(command: str, as_json: bool, model: str) -> None:
    arguments = {
        "train": ["digits", "--workers", "2"],
        "tune": ["digits", "--trials", "2"],
        "evaluate": [model, "--limit", "4"],
        "compare": [model, model, "--limit", "4"],
    }[command]
    with closed() as port:
        address = f"localhost:{port}"
        flags = ["--json"] if as_json else []
        lines, took = fmoe(command, *arguments, *flags, env={"RAY_ADDRESS": address})
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"fmoe: RAY_ADDRESS={address} (")
    assert took < LIMIT


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("head.invalid:6379", "no Ray cluster can be reached"),
        ("ray://127.0.0.1:10001", "expected HEAD:PORT"),
        ("http://127.0.0.1:8265", "fmoe submit … --address http://HEAD:8265"),
        ("127.0.0.1", "expected HEAD:PORT"),
        ("127.0.0.1:0", "expected HEAD:PORT"),
        ("127.0.0.1:65536", "expected HEAD:PORT"),
        (":6379", "expected HEAD:PORT"),
        ("my cluster:6379", "expected HEAD:PORT"),
    ],
)
def test_an_address_that_is_none(address: str, said: str) -> None:
    lines, took = fmoe("train", "digits", env={"RAY_ADDRESS": address})
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"fmoe: RAY_ADDRESS={address}: ")
    assert said in lines[0]
    assert took < LIMIT


SILENCE = """
ip link add way0 type veth peer name way1
ip link set way0 up && ip link set way1 up
ip address add 10.9.9.1/24 dev way0
ip neighbour add 10.9.9.2 lladdr 02:00:00:00:00:02 dev way0
"""


@pytest.mark.parametrize("way", [SILENCE, ""], ids=["packets are dropped", "no route"])
def test_a_network_that_leads_nowhere(way: str) -> None:
    """In a network namespace: one whose only neighbour never answers, and one without a route."""
    if reason := network.why_not():
        pytest.skip(reason)
    command = [sys.executable, "-m", "pipelines.cli", "train", "digits"]
    begin = time.monotonic()
    done = subprocess.run(
        ["unshare", "--net", "sh", "-ec", f'{way}exec "$@"', "sh", *command],
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "10.9.9.2:6379"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("fmoe: RAY_ADDRESS=10.9.9.2:6379: no Ray cluster can be reached (")
    assert time.monotonic() - begin < LIMIT


DASHBOARDS = {
    "closed": (closed, "no Ray cluster answers at"),
    "silent": (lambda: listening(None), "no Ray cluster answers at"),
    "hangs up": (lambda: listening(b""), "no Ray cluster answers at"),
    "ssh": (lambda: listening(b"SSH-2.0-OpenSSH_9.2\r\n"), "no Ray cluster answers at"),
    "web": (web_site, "what answers there is no Ray dashboard (HTTP 200)"),
}
JOBS = {
    "submit": ["submit", "train", "digits"],
    "list": ["jobs", "list"],
    "stop": ["jobs", "stop", "fmoe-train-1a2b3c4d"],
}


@pytest.mark.parametrize(
    ("server", "command"),
    [*((server, "list") for server in DASHBOARDS), ("silent", "submit"), ("web", "stop")],
)
def test_a_dashboard_that_is_none(server: str, command: str) -> None:
    start, gist = DASHBOARDS[server]
    with start() as port:
        address = f"http://127.0.0.1:{port}"
        head, *rest = JOBS[command]
        arguments = [head, "--address", address, *rest]
        if head == "jobs":
            arguments = [head, *rest, "--address", address, "--json"]
        lines, took = fmoe(*arguments, env={})
    assert len(lines) == 1, lines
    assert gist in lines[0]
    assert address in lines[0]
    assert took < LIMIT


def test_interrupted_while_the_head_is_silent() -> None:
    """Ctrl-C is heard at once, not after the deadline."""
    with listening(None) as port:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", "train", "digits"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": f"127.0.0.1:{port}"},
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + LIMIT
        while not _connected(port) and time.monotonic() < deadline:
            time.sleep(0.1)
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, said
    assert time.monotonic() - begin < 5
    assert said.startswith("fmoe: interrupted")


def _connected(port: int) -> bool:
    return any(
        connection.raddr and connection.raddr.port == port
        for connection in psutil.net_connections("tcp")
    )
