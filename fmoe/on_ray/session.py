"""A Ray session: a cluster that is there, or one on this machine for as long as it is needed."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError

from fmoe import provenance
from fmoe.cpus import usable_cpus
from fmoe.errors import UserError, first_line
from fmoe.on_ray import local, loopback, private
from fmoe.on_ray.reach import cluster_address, reach
from fmoe.on_ray.token import auth_token

RAY_ENVIRONMENT = {
    # the controller polls its workers at this pace, and a report waits for it
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
ON_ONE_MACHINE = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # nothing is asked over a network
    "RAY_TRAIN_METRICS_ENABLED": "0",  # Prometheus asks clusters
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody takes this machine away
}
MEBIBYTE = 2**20
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


@dataclass(frozen=True)
class Resources:
    """What one worker is given."""

    cpus: int
    gpus: float

    @classmethod
    def per_worker(cls, workers: int, gpu: bool | None) -> Resources:
        """gpu: None asks the cluster. CPUs of one machine are shared out; on a cluster it is 1.

        Raises `UserError` for a GPU that this machine has not; a cluster may still get one.
        """
        total = ray.cluster_resources()
        if gpu and total.get("GPU", 0) < 1 and not grows():
            raise UserError("--gpu: this machine has no GPU that Ray and torch can use")
        use_gpu = total.get("GPU", 0) >= 1 if gpu is None else gpu
        local = len(ray.nodes()) == 1
        cpus = max(1, int(total.get("CPU", 1)) // workers) if local and not use_gpu else 1
        return cls(cpus, int(use_gpu))

    def shortage(self, workers: int) -> str | None:
        """What is missing for so many workers now; an autoscaler may bring it."""
        kind, each = ("GPU", self.gpus) if self.gpus else ("CPU", self.cpus)
        total = int(ray.cluster_resources().get(kind, 0))
        if workers * each <= total:
            return None
        return f"{workers} workers need {workers * each} {kind}s and the cluster has {total}"

    def device(self) -> torch.device:
        """In a worker: the device it was given; sets the number of threads."""
        if self.gpus:
            return torch.device("cuda:0")
        torch.set_num_threads(self.cpus)
        return torch.device("cpu")


def grows() -> bool:
    """Whether nodes may still come: to a cluster, not to a Ray of this machine alone."""
    return cluster_address() is not None


@contextmanager
def session(workers: int, data_bytes: int = 0, idle: bool = True) -> Iterator[None]:
    """Connects to RAY_ADDRESS or starts Ray on this machine; stops only what it started.

    idle: whether this machine's Ray starts a worker for each CPU at once, for tasks. Tune's trials
    get processes of their own, whose start these would only slow down.

    Raises `UserError` where Ray cannot be reached or does not start, in seconds.
    """
    if ray.is_initialized():
        yield
        return
    address = cluster_address()
    for name, value in environment(address).items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray").setLevel(logging.ERROR)
    with ExitStack() as stack:
        on_terminate = signal.getsignal(signal.SIGTERM)
        try:
            if address:
                connect(address)
            else:
                folder = local.folder()
                start(folder, workers, data_bytes, idle)
                stack.callback(local.tidy, folder)
        except SystemExit:  # Ray's own answer to SIGTERM
            if callable(on_terminate):
                on_terminate(signal.SIGTERM, None)
            raise
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_terminate)  # ray has put its own
        stack.callback(ray.shutdown)
        yield


def environment(address: str | None) -> dict[str, str]:
    """What Ray and torch are told in a cluster, or on this machine alone where there is none."""
    if address:
        return RAY_ENVIRONMENT
    name = loopback.interface()  # by which this machine's workers talk
    return RAY_ENVIRONMENT | ON_ONE_MACHINE | ({"GLOO_SOCKET_IFNAME": name} if name else {})


def connect(address: str) -> None:
    """Raises `UserError`."""
    head = reach(address)
    limit = local.seconds()

    def late() -> str:
        return (
            f"RAY_ADDRESS={address}: the cluster answers, but does not take this command within "
            f"{limit:g} seconds: look at it with `ray status`; a slow one may take longer with "
            f"{local.PATIENCE}={3 * limit:g}"
        )

    try:
        with local.within(limit, late):
            ray.init(address=head, **QUIET)
    except UserError:
        raise
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        raise UserError(f"RAY_ADDRESS={address}: {_gist(error)}") from None


def start(folder: Path, workers: int, data_bytes: int, idle: bool) -> None:
    """A Ray of this machine. folder: for its sockets and logs. Raises `UserError`."""
    auth_token()
    limit = local.seconds()

    def late() -> str:
        return (
            f"Ray does not start on this machine within {limit:g} seconds: {local.said(folder)}; a "
            f"slow machine may take longer with {local.PATIENCE}={3 * limit:g}"
        )

    try:
        with (
            warnings.catch_warnings(),
            private.few_processes(),
            local.nothing_left(),
            local.within(limit, late),
        ):
            warnings.simplefilter("ignore")
            ray.init(
                address="local",  # not whatever cluster runs on this machine
                num_cpus=max(usable_cpus(), workers),
                include_dashboard=False,
                object_store_memory=200 * MEBIBYTE + 2 * data_bytes,
                **private.starting(idle=idle, folder=str(folder)),
                **QUIET,
            )
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - Ray raises bare Exceptions
        raise UserError(
            f"Ray does not start on this machine ({_gist(error)}): {local.said(folder)}"
        ) from None


def _gist(error: Exception) -> str:
    """Ray's messages go on over several lines."""
    return first_line(Exception(" ".join(str(error).split()) or type(error).__name__))


def this_node() -> str:
    """Its address, as the names of what is measured on it have it."""
    return str(ray.util.get_node_ip_address())


def driven_by() -> dict[str, str]:
    """What `fmoe runs reap` needs in order to see whether this run's driver still lives.

    job_id is empty where no job drives it, so that a resume elsewhere takes the tag back.
    """
    gcs = ray.get_runtime_context().gcs_address.rpartition(":")[0]
    return {
        "driver": provenance.driver(),
        "job_id": os.environ.get("FMOE_JOB_ID", ""),
        "ray_head": gcs,
    }
