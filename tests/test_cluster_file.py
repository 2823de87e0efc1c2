"""cluster.yaml against Ray's own schema and validators; broken copies must be refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parent.parent


def validate(cluster: dict[str, Any]) -> None:
    import ray.autoscaler
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    validate_config(fillout_defaults(copy.deepcopy(cluster)))


@pytest.fixture
def cluster() -> dict[str, Any]:
    tree = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert isinstance(tree, dict)
    return tree


def test_cluster_file_is_valid(cluster: dict[str, Any]) -> None:
    validate(cluster)


@pytest.mark.parametrize(
    "fault",
    [
        {"idle_timeout_minute": 3},
        {"max_workers": "4"},
        {"docker": {"imagee": "x"}},
        {"head_node_type": "nonesuch"},
    ],
    ids=lambda fault: next(iter(fault)),
)
def test_broken_copies_are_refused(cluster: dict[str, Any], fault: dict[str, Any]) -> None:
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        validate({**cluster, **fault})


def test_conventions(cluster: dict[str, Any]) -> None:
    """GPU workers come when needed; the dashboard is for loopback; a token is asked for."""
    types = cluster["available_node_types"]
    assert types["gpu"]["min_workers"] == 0
    assert "GPU" not in types["head"]["resources"]
    assert cluster["idle_timeout_minutes"] > 0
    assert "--dashboard-host=127.0.0.1" in " ".join(cluster["head_start_ray_commands"])
    assert any(target.endswith("auth_token") for target in cluster["file_mounts"])
    for start in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in " ".join(cluster[start])
