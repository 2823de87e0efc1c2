"""The parts of Ray that Ray does not promise are as they were when `fmoe.on_ray` was written.

Where one of these fails under another Ray: see what has become of it, mend `fmoe/on_ray/private.py`
(or what is named), run tests/integration and tests/cluster, and raise `SEEN`.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest
import ray
from ray._private import node, parameter, services
from ray._private.gcs_utils import create_gcs_channel
from ray._private.state import state
from ray._raylet import Config  # type: ignore[attr-defined]
from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc
from ray.train import TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.tune.schedulers import PopulationBasedTraining
from ray.util.state import StateApiClient
from ray.util.state.common import ListApiOptions, StateResource

from fmoe.on_ray import private
from fmoe.on_ray.tuning.schedulers import Population

ROOT = Path(__file__).parent.parent
PUBLIC = {"ray", "ray.util.placement_group.PlacementGroup"}
KEPT = {
    "ray._private.gcs_utils.create_gcs_channel",
    "ray._private.parameter",
    "ray._private.services",
    "ray._private.state.state",
    "ray._raylet.Config",
    "ray.core.generated.gcs_pb2",
    "ray.core.generated.gcs_service_pb2",
    "ray.core.generated.gcs_service_pb2_grpc",
    "ray.train.v2._internal.execution.context.get_train_context",
    "ray.util.state.StateApiClient",
    "ray.util.state.common.ListApiOptions",
    "ray.util.state.common.StateResource",
}
"""All that is imported of what Ray keeps to itself; `private.py` says why each is."""


def parameters(function: object) -> list[str]:
    assert callable(function)
    return list(inspect.signature(function).parameters)


def test_it_is_the_version_in_which_they_were_seen() -> None:
    assert ray.__version__ == private.SEEN


def test_nothing_else_imports_what_is_private() -> None:
    """`private.py` is the one module to look at."""
    deep = re.compile(
        r"^\s*(from|import) ray\.(_\w+|core|\w+\._\w+|\w+\.v2|autoscaler|util\.state)\b"
        r"|_system_config|_temp_dir",
        re.MULTILINE,
    )
    files = [*(ROOT / "fmoe").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")]
    using = {file.name for file in files if deep.search(file.read_text())}
    assert using == {"private.py"}


def test_no_other_is_imported() -> None:
    imports = set()
    for line in ast.walk(ast.parse(inspect.getsource(private))):
        if isinstance(line, ast.Import):
            imports |= {alias.name for alias in line.names}
        elif isinstance(line, ast.ImportFrom):
            imports |= {f"{line.module}.{alias.name}" for alias in line.names}
    assert {name for name in imports if name.split(".")[0] == "ray"} - PUBLIC == KEPT


def test_messages_of_the_head() -> None:
    node = gcs_pb2.GcsNodeInfo
    assert {"node_id", "node_manager_address", "node_manager_port", "state"} <= {
        *node.DESCRIPTOR.fields_by_name
    }
    assert node.ALIVE == 0
    alive = gcs_service_pb2.CheckAliveReply.DESCRIPTOR.fields_by_name
    nodes = gcs_service_pb2.GetAllNodeInfoReply.DESCRIPTOR.fields_by_name
    assert "ray_version" in alive
    assert "node_info_list" in nodes
    with private.channel("127.0.0.1:1") as channel:
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        assert callable(stub.CheckAlive)
        assert callable(stub.GetAllNodeInfo)
    assert parameters(create_gcs_channel)[0] == "address"


def test_placement_groups() -> None:
    group = gcs_pb2.PlacementGroupTableData
    assert {
        "placement_group_id",
        "creator_job_id",
        "creator_actor_id",
        "creator_actor_dead",
        "state",
    } <= {*group.DESCRIPTOR.fields_by_name}
    assert group.REMOVED in group.PlacementGroupState.values()
    assert callable(state._connect_and_get_accessor)
    assert "PlacementGroupID" in ray.__all__
    name = bytes(range(ray.PlacementGroupID.size()))
    assert ray.PlacementGroupID(name).binary() == name


def test_addresses_and_nodes() -> None:
    assert parameters(services.find_node_ids) == []
    assert private.bootstrap_address("10.0.0.1:6379") == "10.0.0.1:6379"
    assert isinstance(private.nodes_of_this_machine(), set)
    assert callable(Config.initialize)


def test_arguments_of_init() -> None:
    wanted = private.starting(idle=True, folder="/somewhere")
    assert wanted.keys() <= {*parameters(ray.init), "_system_config", "_temp_dir"}
    assert wanted["_system_config"] == {
        "prestart_worker_first_driver": True,
        "idle_worker_killing_time_threshold_ms": 120_000,
    }
    assert "_system_config" in inspect.getsource(ray.init)
    assert "_temp_dir" in inspect.getsource(ray.init)


def test_the_state_api() -> None:
    assert {"address", "headers"} <= {*parameters(StateApiClient)}
    assert {"resource", "options", "raise_on_missing_output"} <= {*parameters(StateApiClient.list)}
    assert ListApiOptions(filters=[("is_head_node", "=", True)]).filters
    assert StateResource.NODES


def test_what_is_overridden_or_read_in_tune_and_train() -> None:
    """Methods that start with an underscore, and attributes that no documentation names."""
    theirs, ours = PopulationBasedTraining._get_new_config, Population._get_new_config
    assert parameters(theirs) == parameters(ours)
    assert "worker_failures" in parameters(WorkerGroupError)
    assert issubclass(WorkerGroupError, TrainingFailedError)


def test_helpers_that_are_not_started() -> None:
    """Ray takes these for a start without dashboard, autoscaler and log monitor."""
    assert {"no_monitor", "include_log_monitor"} <= {*parameters(parameter.RayParams)}
    start = inspect.getsource(node.Node.start_api_server)
    assert "ray._private.services.start_api_server(" in start
    assert "if process_info is not None" in start
    usual = services.start_api_server
    with private.few_processes():
        assert services.start_api_server is not usual
        params = parameter.RayParams()
        assert (params.no_monitor, params.include_log_monitor) == (True, False)
    assert services.start_api_server is usual


@pytest.mark.parametrize("of_a_cluster", [False, True])
def test_helpers_of_ray_train_that_are_not_started(of_a_cluster: bool) -> None:
    trainer = TorchTrainer(lambda: None)
    before = {type(callback).__name__ for callback in trainer._create_default_callbacks()}
    private.without_helpers(trainer, of_a_cluster=of_a_cluster)
    after = {type(callback).__name__ for callback in trainer._create_default_callbacks()}
    cleaner = set() if of_a_cluster else {"PlacementGroupCleanerCallback"}
    assert before - after == {"DatasetsCallback"} | cleaner
