"""Everything of Ray that Ray does not promise: its private modules, messages and settings.

They were seen in the version that `SEEN` names; another one may have moved any of them, and
`tests/test_ray_private.py`, which lists them, then says which. Elsewhere only public names of Ray
are imported. What has no public name, and why the nearest one does not do:

- A question to a cluster's head with a deadline (`gcs_utils`, `gcs_*pb2`): `ray.init` tries an
  address where nothing answers for a quarter of an hour; `ray health-check` is not public either.
- Who made a placement group (`state`, `gcs_pb2`): `ray.util.placement_group_table` leaves it out;
  the state API names the job alone, and needs the dashboard besides.
- Which nodes run here, and what `auto` means (`services`): only `ray.init` itself asks that.
- Settings after the import of Ray (`Config`), or for one start of it (`_system_config` and
  `_temp_dir`, which `ray.init` calls unstable): variables RAY_… name the same settings, and every
  child would have them.
- A start without helpers (`parameter`, `services`; callbacks of Ray Train): with
  `include_dashboard=False` the dashboard's process starts all the same; the others have no switch.
- The notice to a spot machine, without a barrier (`get_train_context`): see `told_to_end`.
- The head's address by HTTP with our token (`StateApiClient`): `ray.util.state.list_nodes` takes no
  headers, and sends a token only where RAY_AUTH_MODE said so before Ray was imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import ray
from ray._private import parameter, services
from ray._private.gcs_utils import create_gcs_channel
from ray._private.state import state
from ray._raylet import Config  # type: ignore[attr-defined]
from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc
from ray.util.placement_group import PlacementGroup

SEEN = "2.60.0"


@contextmanager
def channel(address: str) -> Iterator[grpc.Channel]:
    """The connection that Ray itself would use, with its token. address: host:port."""
    opened = create_gcs_channel(address)
    try:
        yield opened
    finally:
        opened.close()


@dataclass(frozen=True)
class Node:
    """A node that is alive. id: in hexadecimal digits; address: host:port of its raylet."""

    id: str
    address: str


@dataclass(frozen=True)
class Head:
    """A cluster's head over a `channel`. Its methods raise `grpc.RpcError` after `seconds`."""

    channel: grpc.Channel
    seconds: float

    def version(self) -> str:
        request = gcs_service_pb2.CheckAliveRequest()
        return str(self._asked().CheckAlive(request, timeout=self.seconds).ray_version)

    def nodes(self) -> list[Node]:
        request = gcs_service_pb2.GetAllNodeInfoRequest()
        answer = self._asked().GetAllNodeInfo(request, timeout=self.seconds)
        return [
            Node(n.node_id.hex(), f"{n.node_manager_address}:{n.node_manager_port}")
            for n in answer.node_info_list
            if n.state == gcs_pb2.GcsNodeInfo.ALIVE
        ]

    def _asked(self) -> Any:
        return gcs_service_pb2_grpc.NodeInfoGcsServiceStub(self.channel)


def nodes_of_this_machine() -> set[str]:
    """Ids of the nodes whose processes run here, whichever cluster they are of."""
    return set(services.find_node_ids())


def bootstrap_address(address: str) -> str:
    """host:port of an address as RAY_ADDRESS has it (`auto` is what runs on this machine, and
    localhost this machine's own address). Raises `ConnectionError` where `auto` finds none."""
    return str(services.canonicalize_bootstrap_address(address))


def read_environment() -> None:
    """Ray has read the settings in RAY_… variables already; it reads them again."""
    Config.initialize("")


IDLE_MILLISECONDS = 120_000
"""For which a process without a task is kept for the next one: what reads streamed data has one
every few seconds, and takes three to start."""


def starting(*, idle: bool, folder: str) -> dict[str, Any]:
    """Arguments of `ray.init`. idle: whether a worker for each CPU is started at once; folder: for
    its sockets and logs."""
    settings = {
        "prestart_worker_first_driver": idle,
        "idle_worker_killing_time_threshold_ms": IDLE_MILLISECONDS,
    }
    return {"_system_config": settings, "_temp_dir": folder}


@contextmanager
def few_processes() -> Iterator[None]:
    """A Ray that starts while the block runs does so without three helpers that are of no use to a
    command of this machine: the autoscaler, what brings workers' output to the driver, and what is
    left of the dashboard, whose start Ray waits for."""
    usual = parameter.RayParams, services.start_api_server
    parameter.RayParams = partial(usual[0], no_monitor=True, include_log_monitor=False)
    services.start_api_server = lambda *_, **__: (None, None)  # what a failed start gives
    try:
        yield
    finally:
        parameter.RayParams, services.start_api_server = usual


def without_helpers(trainer: Any, *, of_a_cluster: bool) -> None:
    """Keeps a Ray Train run from starting processes that have nothing to do: one for data sets of
    Ray Data, and on one machine one that asks the dashboard whether the controller is dead."""
    unused = {"DatasetsCallback"} | (set() if of_a_cluster else {"PlacementGroupCleanerCallback"})
    usual = trainer._create_default_callbacks

    def needed() -> list[Any]:
        return [callback for callback in usual() if type(callback).__name__ not in unused]

    trainer._create_default_callbacks = needed


def told_to_end() -> bool:
    """In a worker of Ray Train: whether the node of one of them is to be preempted, as this process
    knows it. `ray.train.get_preemption_info` says the same by a call of an actor that all workers
    wait for, which is not for every step."""
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None


def groups_of_dead_actors(job: str) -> list[PlacementGroup]:
    """Placement groups of this job that are not removed, and whose creator was an actor that is
    dead. job: its id in hexadecimal digits."""
    tables = state._connect_and_get_accessor().get_placement_group_table()
    groups = [gcs_pb2.PlacementGroupTableData.FromString(table) for table in tables]
    return [
        PlacementGroup(ray.PlacementGroupID(group.placement_group_id))
        for group in groups
        if group.creator_job_id.hex() == job
        and group.creator_actor_id.strip(b"\xff")  # none: the driver has made it
        and group.creator_actor_dead
        and group.state != gcs_pb2.PlacementGroupTableData.REMOVED
    ]


def head_node_ip(dashboard: str, headers: Mapping[str, str]) -> str:
    """dashboard: its URL; headers: of HTTP, the token among them."""
    from ray.util.state import StateApiClient
    from ray.util.state.common import ListApiOptions, StateResource

    client = StateApiClient(dashboard, headers=dict(headers))
    options = ListApiOptions(filters=[("is_head_node", "=", True)])
    (node,) = client.list(StateResource.NODES, options, raise_on_missing_output=False)
    return str(node.node_ip)
