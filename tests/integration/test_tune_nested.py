"""Trials of several workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.integration.spaces import space

NESTED = """
import json, sys, time
from pathlib import Path
import ray
from fmoe.on_ray.session import session
from pipelines.study.run import Request, run

with session(1):
    answer = run(Request(sys.argv[1], workers=2, name='nested'))
    deadline = time.monotonic() + 20
    while ray.available_resources().get('CPU') != ray.cluster_resources()['CPU']:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.2)
print(json.dumps(answer))
"""


def test_trials_of_two_workers_free_all_cpus(tmp_path: Path) -> None:
    file = space(
        tmp_path,
        {"joint.optimizer.lr": {"choice": [1e-6, 0.2]}},
        searcher={"kind": "grid"},
        scheduler={"kind": "asha", "grace": 1, "reduction": 4},
        baseline=False,
        budget={"trials": 3},
    )
    done = subprocess.run(
        [sys.executable, "-c", NESTED, str(file)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "FMOE_HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert sum(answer["counts"].values()) == 2
    assert answer["counts"]["failed"] == 0
    assert answer["best"]["model_uri"].startswith("models:/fmoe-digits/")
