"""Hosts made of Linux network namespaces: an address and a name each, and a link that can be cut.

    with Network() as network:
        head = network.host("head")
        head.start("ray", "start", "--head", "--block", log=tmp_path / "head.log")

The hosts hang on a bridge in a namespace of its own; nothing touches the machine's own network.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

PRIVATE = Path("/tmp/ray")  # every host's own; Ray's sockets need a short path


def why_not() -> str | None:
    """Why namespaces cannot be made here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need iproute2's `ip`"
    name = f"fmoe-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces are not permitted here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return None


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Host:
    def __init__(self, network: Network, name: str, number: int):
        self.network, self.name = network, name
        self.address = f"10.77.0.{number}"
        self.namespace = f"{network.prefix}{name}"
        self.port = f"{network.prefix}p{number}"  # its end on the bridge
        self.private = network.folder / name
        self.private.mkdir()
        self.started: list[subprocess.Popen[str]] = []
        ip("netns", "add", self.namespace)
        hosts = Path("/etc/netns") / self.namespace  # `ip netns exec` mounts it over /etc
        hosts.mkdir(parents=True)
        (hosts / "hosts").write_text(f"127.0.0.1 localhost\n{self.address} {name}\n")
        ip("link", "add", self.port, "netns", network.switch, "type", "veth", "peer", "name",
           "eth0", "netns", self.namespace)  # fmt: skip
        ip("-n", self.namespace, "address", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", self.namespace, "link", "set", device, "up")
        ip("-n", network.switch, "link", "set", self.port, "master", "bridge", "up")

    def command(self, *command: str | Path) -> list[str]:
        inside = 'hostname "$1"; mount --bind "$2" "$3"; shift 3; exec "$@"'
        return [
            *("ip", "netns", "exec", self.namespace, "unshare", "--uts", "sh", "-c", inside, "sh"),
            *(self.name, str(self.private), str(PRIVATE), *map(str, command)),
        ]

    def start(
        self, *command: str | Path, env: Mapping[str, str] | None = None, log: Path
    ) -> subprocess.Popen[str]:
        """A process on this host; its output goes to `log`."""
        with log.open("a") as file:
            process = subprocess.Popen(
                self.command(*command),
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.started.append(process)
        return process

    def run(
        self, *command: str | Path, env: Mapping[str, str] | None = None, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*command),
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def pids(self) -> list[int]:
        found = subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=True
        )
        return [int(pid) for pid in found.stdout.split()]

    def find(self, text: str) -> list[int]:
        """Processes of this host whose command line (or Ray's title) holds `text`."""
        return [pid for pid in self.pids() if text in command_line(pid)]

    def kill(self) -> None:
        """Ends all of its processes at once, as a power cut would."""
        deadline = time.monotonic() + 20
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert time.monotonic() < deadline, f"{self.name}: {pids} do not die"
            time.sleep(0.1)
        for process in self.started:
            process.wait()

    def cut(self) -> None:
        ip("-n", self.network.switch, "link", "set", self.port, "down")

    def limit(self, rate: str) -> None:
        """What it sends goes over the link at this rate, as `100mbit`."""
        shape = "root", "tbf", "rate", rate, "burst", "256kb", "latency", "100ms"
        device = "qdisc", "replace", "dev", "eth0"
        subprocess.run(["tc", "-n", self.namespace, *device, *shape], check=True)

    def mend(self) -> None:
        ip("-n", self.network.switch, "link", "set", self.port, "up")


class Network:
    def __enter__(self) -> Network:
        self.prefix = f"f{os.getpid()}-"  # a device's name has 15 letters at most
        self.switch = f"{self.prefix}switch"
        self.hosts: list[Host] = []
        self.folder = Path(tempfile.mkdtemp(prefix="fmoe-hosts-"))
        PRIVATE.mkdir(exist_ok=True)
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.switch, "link", "set", "bridge", "up")
        return self

    def host(self, name: str) -> Host:
        host = Host(self, name, len(self.hosts) + 1)
        self.hosts.append(host)
        return host

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for host in self.hosts:
            host.kill()
            ip("netns", "delete", host.namespace)
            shutil.rmtree(Path("/etc/netns") / host.namespace)
        ip("netns", "delete", self.switch)
        shutil.rmtree(self.folder, ignore_errors=True)


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""
