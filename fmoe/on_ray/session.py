"""A Ray session: a cluster that is there, or one on this machine for as long as it is needed."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from fmoe.data import Data, Name, Split
from fmoe.errors import UserError, first_line

SETTINGS = {
    # the controller polls its workers at this pace, and a report waits for it
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Resources:
    """What one worker is given."""

    cpus: int
    gpus: int

    @classmethod
    def per_worker(cls, workers: int, gpu: bool | None) -> Resources:
        """gpu: None asks the cluster. CPUs of one machine are shared out; on a cluster it is 1."""
        total = ray.cluster_resources()
        use_gpu = total.get("GPU", 0) >= 1 if gpu is None else gpu
        local = len(ray.nodes()) == 1
        cpus = max(1, int(total.get("CPU", 1)) // workers) if local and not use_gpu else 1
        return cls(cpus, int(use_gpu))

    def device(self) -> torch.device:
        """In a worker: the device it was given; sets the number of threads."""
        if self.gpus:
            return torch.device("cuda:0")
        torch.set_num_threads(self.cpus)
        return torch.device("cpu")


def make_token() -> None:
    """Ray would make its authentication token readable for all; ours is there before it looks."""
    token = Path.home() / ".ray" / "auth_token"
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    token.parent.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    token.chmod(0o600)


@contextmanager
def session(workers: int, data_bytes: int = 0) -> Iterator[None]:
    """Connects to RAY_ADDRESS or starts Ray on this machine; stops only what it started."""
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    on_terminate = signal.getsignal(signal.SIGTERM)
    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"no Ray cluster at {address} ({first_line(error)})") from None
    else:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        make_token()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(
                address="local",  # not whatever cluster runs on this machine
                num_cpus=max(os.cpu_count() or 1, workers),
                include_dashboard=False,
                object_store_memory=200 * MEBIBYTE + 2 * data_bytes,
                **quiet,
            )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # ray has put its own
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class SharedData:
    """A data set as arrays in Ray's object store: workers on a node share one copy."""

    name: Name
    digest: str
    arrays: dict[str, np.ndarray]

    @classmethod
    def of(cls, data: Data) -> SharedData:
        parts = {"train": data.train, "val": data.val, "test": data.test}
        arrays = {f"{n}_images": s.images.numpy() for n, s in parts.items()}
        arrays |= {f"{n}_labels": s.labels.numpy() for n, s in parts.items()}
        return cls(data.name, data.digest, arrays)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def data(self) -> Data:
        def split(part: str) -> Split:
            return Split(
                torch.from_numpy(self.arrays[f"{part}_images"]),
                torch.from_numpy(self.arrays[f"{part}_labels"]),
            )

        with warnings.catch_warnings():
            # the store's arrays are read-only, and nothing of ours writes to them
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return Data(self.name, split("train"), split("val"), split("test"), self.digest)


Event = dict[str, Any]
Listener = Callable[[Event], None]


@ray.remote(num_cpus=0)
class Mailbox:
    """Events of the workers, until the driver fetches them."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def put(self, event: Event) -> None:
        self.events.append(event)

    def drain(self) -> list[Event]:
        events, self.events = self.events, []
        return events


@contextmanager
def mailbox(listener: Listener, interval: float = 0.3) -> Iterator[Any]:
    """A mailbox whose events are handed to `listener` while the block runs, the last at its end."""
    box = Mailbox.remote()  # type: ignore[attr-defined]
    stop = threading.Event()

    def deliver() -> None:
        for event in ray.get(box.drain.remote()):
            listener(event)

    def loop() -> None:
        while not stop.wait(interval):
            deliver()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield box
        stop.set()
        thread.join()
        deliver()
    finally:
        stop.set()
        thread.join(timeout=5)
        ray.kill(box)


def results(tasks: Sequence[Any], on_done: Callable[[int], None] | None = None) -> list[Any]:
    """The tasks' results in order; `on_done` hears how many are there.

    A task's own error is raised as it was. The others end with the session: `ray.cancel` while a
    task finishes aborts this process (Ray 2.60, task_manager.cc), and its MLflow run stays RUNNING.
    """
    pending = list(tasks)
    try:
        while pending:
            done, pending = ray.wait(pending)
            ray.get(done)
            if on_done:
                on_done(len(tasks) - len(pending))
        return list(ray.get(list(tasks)))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise (cause if isinstance(cause, Exception) else error) from None
