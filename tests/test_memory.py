"""A step that does not fit into memory says what takes less; one that is told so fits."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fmoe import config
from fmoe.errors import UserError
from fmoe.training.memory import fitting

STEP = """
import resource, sys, torch
torch.set_num_threads(1)
from fmoe import assembly, config, training
from fmoe.data.facts import Facts
from fmoe.data.splits import Split
from fmoe.errors import UserError
facts = Facts(shape=(3, 224, 224), classes=("a", "b"), mean=(0.5,) * 3, std=(0.2,) * 3)
chosen = config.load("digits-whole", [
    "data.name=cifar10", "experts.roles.fgsm.count=1", "experts.roles.pgd.count=1",
    "experts.backbone.width=8", "joint.batch_size=8", "joint.epochs=1",
    "joint.attack={kind: fgsm}", "joint.validation.attack={kind: fgsm}", *sys.argv[1:],
])
images = torch.randint(256, (8, *facts.shape), dtype=torch.uint8)
split = Split(images, torch.arange(8) % 2)
model = assembly.seeded_mixture(chosen, facts)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 800 * 2**20,) * 2)
try:
    for epoch in training.epochs(
        model, training.Training(chosen.joint, chosen.joint.attack, split, split[:2])
    ):
        print("trained", epoch.index)
except UserError as error:
    print(error)
"""


def said(*overrides: str) -> str:
    """What a process with 800 MB for three networks on images of 224 pixels prints at last."""
    done = subprocess.run(
        [sys.executable, "-c", STEP, *overrides], capture_output=True, text=True, check=False
    )
    return (done.stdout.splitlines() or [done.stderr[-500:]])[-1]


def test_large_images_fit_by_what_the_refusal_says() -> None:
    assert said() == (
        "joint: a step does not fit into memory: --set joint.accumulate=2, or "
        "joint.checkpointing=true, or more workers, or joint.batch_size below 8"
    )
    assert said("joint.accumulate=4", "joint.checkpointing=true") == "trained 0"


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")]
)
def test_each_way_in_which_memory_ends(error: Exception) -> None:
    settings = config.load("digits-whole", ["experts.train.accumulate=2"])
    told = r"^experts\.train: .* --set experts\.train\.accumulate=4"
    with pytest.raises(UserError, match=told), fitting(settings.experts.train):
        raise error


def test_other_errors_stay() -> None:
    with pytest.raises(RuntimeError, match="shapes"), fitting(config.load("digits").joint):
        raise RuntimeError("shapes do not fit")
