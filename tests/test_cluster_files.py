"""cluster.yaml and the RayJob manifest against Ray's own validators; SkyPilot's task; the image."""

from __future__ import annotations

import copy
import json
import re
import shlex
from pathlib import Path
from string import Template
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from packaging.requirements import Requirement

from fmoe import config

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


def parsed(line: str) -> Tree:
    """What the command's own parser makes of `fmoe COMMAND …`."""
    from pipelines.cli import app

    program, *words = shlex.split(line)
    assert program == "fmoe"
    name: str = program
    command: Any = typer.main.get_command(app)
    while hasattr(command, "resolve_command"):
        name, command, words = command.resolve_command(typer.Context(command), words)
    given: Tree = command.make_context(name, words).params
    return given


def test_job_command_is_one_of_ours() -> None:
    given = parsed(read("docs/rayjob.yaml")["spec"]["entrypoint"])
    config.load(given["recipe"])
    assert given["name"], "a job that is tried again must resume"


def test_sky_task_has_keys_of_a_task() -> None:
    """Those of SkyPilot's task format that it needs; its own loader is too much to install here."""
    task = read("sky.yaml")
    assert {*task} == {"name", "workdir", "resources", "envs", "secrets", "setup", "run"}
    assert {*task["resources"]} == {
        "image_id", "accelerators", "cpus", "memory", "disk_size", "use_spot",
    }  # fmt: skip
    assert all(count >= 1 for count in task["resources"]["accelerators"].values())
    assert all(isinstance(value, str) for value in task["envs"].values())
    assert task["secrets"] == {"MLFLOW_TRACKING_URI": None, "FMOE_STORAGE": None}
    assert task["workdir"] == "."


def test_sky_commands_are_ours() -> None:
    task = read("sky.yaml")
    prepare = next(line for line in task["setup"].splitlines() if line.startswith("fmoe "))
    place, _, train = task["run"].strip().partition(" ")
    assert place == "RAY_ADDRESS=local"
    assert parsed(Template(prepare).substitute(task["envs"]))["source"] == "cifar10"
    given = parsed(Template(train).substitute(task["envs"]))
    assert config.load(given["recipe"]).data.name == task["envs"]["DATA"]
    assert given["gpu"]
    assert given["name"], "a job that moves to another machine must resume"


INSTRUCTION = re.compile(r"(?:#.*)?|(FROM|COPY|RUN) +(.+)")


def instructions() -> list[tuple[str, list[str]]]:
    """Of the Dockerfile: (its name, its words without flags)."""
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", "").splitlines()
    matches = [INSTRUCTION.fullmatch(line) for line in lines]
    assert None not in matches
    return [
        (match[1], [word for word in shlex.split(match[2]) if not word.startswith("--")])
        for match in matches
        if match and match[1]
    ]


def test_image_installs_the_wheel_with_the_pins() -> None:
    stages = [words for name, words in instructions() if name == "FROM"]
    assert stages == [
        [f"rayproject/ray:{pinned('ray')}-py311-gpu", "AS", "ray"],
        ["ray", "AS", "build"],
        ["ray"],
    ]
    copied = [words[:-1] for name, words in instructions() if name == "COPY"]
    assert all((ROOT / source).exists() for sources in copied for source in sources)
    build, install = [words for name, words in instructions() if name == "RUN"]
    assert build[:2] == ["pip", "wheel"]
    assert install == [
        "pip",
        "install",
        "-c",
        "/home/ray/constraints.txt",
        "/home/ray/wheels/*.whl",
    ]


def test_all_name_the_pinned_ray() -> None:
    ray = pinned("ray")
    assert read("cluster.yaml")["docker"]["image"].startswith(f"rayproject/ray:{ray}-")
    assert read("sky.yaml")["resources"]["image_id"].startswith(f"docker:rayproject/ray:{ray}-")
    assert f"rayproject/ray:{ray}-" in (ROOT / "Dockerfile").read_text()
    assert read("docs/rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == ray
