"""cluster.yaml and the RayJob manifest against Ray's own validators; broken copies are refused."""

from __future__ import annotations

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
Tree = dict[str, Any]


def validate_cluster(cluster: Tree) -> None:
    import ray.autoscaler
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    validate_config(fillout_defaults(copy.deepcopy(cluster)))


def validate_job(job: Tree) -> Tree:
    """The autoscaler's configuration that Ray derives from the manifest's cluster."""
    from ray.autoscaler._private.kuberay.autoscaling_config import (
        _derive_autoscaling_config_from_ray_cr,
    )

    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    metadata = {**job["metadata"], "namespace": "default"}
    derived: Tree = _derive_autoscaling_config_from_ray_cr(
        {"metadata": metadata, "spec": job["spec"]["rayClusterSpec"]}
    )
    return derived


def read(name: str) -> Tree:
    tree = yaml.safe_load((ROOT / name).read_text())
    assert isinstance(tree, dict)
    return tree


def pinned(package: str) -> str:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.startswith(f"{package}=="):
            return next(iter(Requirement(line).specifier)).version
    raise AssertionError(f"{package} is not pinned")


def changed(tree: Tree, path: str, value: Any) -> Tree:
    """A copy with `a.0.b` set, or taken away where the value is None."""
    broken = copy.deepcopy(tree)
    at: Any = broken
    *parents, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    for key in parents:
        at = at[key]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return broken


def test_cluster_file_is_valid() -> None:
    validate_cluster(read("cluster.yaml"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("idle_timeout_minute", 3),
        ("max_workers", "4"),
        ("docker/imagee", "x"),
        ("docker/image", 7),
        ("head_node_type", "nonesuch"),
        ("head_node_type", None),
        ("cluster_name", None),
        ("provider/type", None),
        ("available_node_types/gpu/min_workers", 9),
        ("available_node_types/gpu/max_worker", 2),
        ("available_node_types/gpu/resources/GPU", "one"),
        ("setup_commands", "pip install"),
        ("file_mounts", ["~/.ray/auth_token"]),
    ],
)
def test_broken_cluster_files_are_refused(path: str, value: Any) -> None:
    with pytest.raises((jsonschema.ValidationError, ValueError, KeyError)):
        validate_cluster(changed(read("cluster.yaml"), path, value))


def test_cluster_conventions() -> None:
    """GPU workers come when needed; the dashboard is for loopback; a token is asked for."""
    cluster = read("cluster.yaml")
    types = cluster["available_node_types"]
    assert types["gpu"]["min_workers"] == 0
    assert "GPU" not in types["head"]["resources"]
    assert cluster["idle_timeout_minutes"] > 0
    assert "--dashboard-host=127.0.0.1" in " ".join(cluster["head_start_ray_commands"])
    assert any(target.endswith("auth_token") for target in cluster["file_mounts"])
    for start in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in " ".join(cluster[start])
        assert ".fmoe.env" in " ".join(cluster[start])


def test_job_manifest_is_valid() -> None:
    derived = validate_job(read("docs/rayjob.yaml"))
    types = derived["available_node_types"]
    assert types["gpu"]["min_workers"] == 0
    assert types["gpu"]["max_workers"] == derived["max_workers"] == 4
    assert types["gpu"]["resources"]["GPU"] == 1
    assert "GPU" not in types["headgroup"]["resources"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("kind", "RayCluster"),
        ("spec/rayClusterSpec", None),
        ("spec/rayClusterSpec/headGroupSpec", None),
        ("spec/rayClusterSpec/workerGroupSpecs/0/groupName", None),
        ("spec/rayClusterSpec/workerGroupSpecs/0/maxReplicas", "four"),
        ("spec/rayClusterSpec/workerGroupSpecs/0/minReplicas", 9),
        ("spec/rayClusterSpec/workerGroupSpecs/0/template/spec/containers", []),
        ("spec/rayClusterSpec/headGroupSpec/rayStartParams/num-cpus", "many"),
    ],
)
def test_broken_job_manifests_are_refused(path: str, value: Any) -> None:
    with pytest.raises(
        (jsonschema.ValidationError, ValueError, LookupError, TypeError, AssertionError)
    ):
        validate_job(changed(read("docs/rayjob.yaml"), path, value))


def test_job_command_is_one_of_ours() -> None:
    from fmoe import config
    from pipelines.cli import app

    program, name, *arguments = shlex.split(read("docs/rayjob.yaml")["spec"]["entrypoint"])
    assert program == "fmoe"
    commands: Any = typer.main.get_command(app)
    given = commands.commands[name].make_context(name, arguments)
    config.load(given.params["recipe"])
    assert given.params["name"], "a job that is tried again must resume"


def test_all_name_the_pinned_ray() -> None:
    ray = pinned("ray")
    assert read("cluster.yaml")["docker"]["image"].startswith(f"rayproject/ray:{ray}-")
    assert f"rayproject/ray:{ray}-" in (ROOT / "Dockerfile").read_text()
    assert read("docs/rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == ray
