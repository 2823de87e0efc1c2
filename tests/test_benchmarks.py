"""The benchmarks run, and what they compare is comparable; their figures are not looked at."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import pytest
import torch

from benchmarks import crafting, gpu, memory, on_gpu, step
from fmoe.data.facts import Facts
from fmoe.planning.memory import peak

FOLDER = Path(step.__file__).parent


@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("[a-z]*.py")))
def test_each_says_how_it_is_run(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    assert module.__doc__
    if hasattr(module, "main"):
        text = module.__doc__
        assert f"python -m benchmarks.{name}" in text or f"python benchmarks/{name}.py" in text


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_all_libraries_reach_about_the_same_loss() -> None:
    found = crafting.compare(2, 4, 8, rounds=1)
    losses = found["loss_reached"]
    assert {"torchattacks", "foolbox", "fmoe, twin bfloat16"} <= set(losses)
    without = losses.pop("without an attack")
    gain = losses["torchattacks"] - without
    assert gain > 0
    assert all(abs(loss - without - gain) < 0.25 * gain for loss in losses.values()), losses


def test_a_step_is_compared_with_as_many_passes() -> None:
    found = step.compare(2, 4, 8, steps=1, rounds=1)
    for precision in ("bfloat16", "float32"):
        assert found[precision]["ratio"] > 0.5


def test_checkpointing_needs_less_memory() -> None:
    facts = Facts(
        shape=(3, 64, 64), classes=tuple(map(str, range(100))), mean=(0.5,) * 3, std=(0.2,) * 3
    )
    found = memory.compare(4, 4, 32, 1, facts, epoch=True)
    assert found["bound"] < found["checkpointing"] < 0.7 * found["plain"]
    for name in ("plain", "checkpointing"):  # an epoch keeps nothing but its images
        assert found[f"{name}, an epoch"] <= 1.002 * found[f"{name}, predicted of an epoch"]


def test_memory_counts_what_is_alive() -> None:
    def run() -> None:
        one = torch.zeros(1000)
        other = one + 1
        del one
        torch.cat([other, other])

    assert peak(run, []) == 4 * (1000 + 2000)
    assert peak(lambda: None, [torch.zeros(10)]) == 40


def test_what_a_gpu_would_be_asked_is_true_here() -> None:
    """The script itself, on this machine's CPU: every check holds, and speed has its rows."""
    device = torch.device("cpu")
    found = on_gpu.of_body("branched", device, width=4, count=8)
    found |= on_gpu.steps("whole", device, width=4, count=8)
    assert [name for name, (value, most) in found.items() if value > most] == []
    assert len(found) == 9


def test_parts_that_cannot_run_are_skipped_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    given = argparse.Namespace(data_dir=None)
    assert gpu.why_not(gpu.PARTS["speedrun"], given) == "skipped: needs pyautoattack"
    assert gpu.why_not(gpu.PARTS["ray_overhead"], given) == "skipped: needs ray, mlflow"
    assert gpu.why_not(gpu.PARTS["whole"], given) == "skipped: needs --data-dir with CIFAR-10"
    assert gpu.why_not(gpu.PARTS["correctness"], given) is None
