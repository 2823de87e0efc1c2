"""What experts cost that share a trunk, beside one network: a training step and inference.

    python -m benchmarks.branches                      # 1, 3, 9 and 16 branches, batch 256
    python -m benchmarks.branches --experts 9 --whole  # and 9 whole networks

The network is the speedrun's (ResNet-18, a stem of patches, width 24, Muon); the experts share it
up to its third stage and have one block of four times the width each, and a gate on the trunk's
features. All arms take turns in one run; a ratio is the median of an arm over that of the one
network. Training is in bfloat16 with crafting included (FGSM from a random start, PGD-10),
inference in float32. Result: benchmarks/results/branches.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks import measure
from benchmarks.speedrun import SETTINGS
from benchmarks.step import on_noise, whole_steps
from fmoe import assembly, config
from fmoe.attacks import FGSM, PGD, AttackConfig
from fmoe.config import Config

ATTACKS: dict[str, AttackConfig] = {
    "fgsm": FGSM(eps=12 / 255, step_size=14 / 255, random_start=True),
    "pgd10": PGD(eps=8 / 255, step_size=2 / 255, steps=10),
}
BRANCHED = ["experts.start=fresh", "experts.trunk={stages: 3}", "gate={kind: features}"]
Arm = Callable[[], object]


def settings(experts: int, *more: str) -> Config:
    roles = f"experts.roles={{pgd: {{count: {experts}, attack: {{kind: pgd}}}}}}"
    return config.load("cifar10-small", [*SETTINGS, roles, *more])


def single() -> nn.Module:
    return assembly.seeded_expert(settings(1), ("pgd", 0), 0)


def step(model: nn.Module, attack: AttackConfig, batch: int) -> Arm:
    chosen = settings(1, f"joint.batch_size={batch}")
    return whole_steps(on_noise(model, chosen, attack, "bfloat16", 4 * batch))


def inference(model: nn.Module, batch: int) -> Arm:
    x = torch.rand(batch, 3, 32, 32, device=measure.device())
    x, model = x.to(memory_format=torch.channels_last), model.to(x.device)

    def run() -> None:
        with torch.inference_mode():
            model.eval()(x)

    return run


def compare(experts: list[int], batch: int, rounds: int, *, whole: bool) -> dict[str, Any]:
    models: dict[str, Callable[[], nn.Module]] = {"one network": single}
    for number in experts:
        models[f"{number} branches"] = lambda n=number: assembly.seeded_mixture(  # type: ignore[misc]
            settings(n, *BRANCHED)
        )
        if whole:
            models[f"{number} whole"] = lambda n=number: assembly.seeded_mixture(settings(n))  # type: ignore[misc]
    found: dict[str, Any] = {"batch": batch}
    kinds = [*ATTACKS, "inference"]
    for kind in kinds:
        arms = {
            name: inference(make(), batch)
            if kind == "inference"
            else step(make(), ATTACKS[kind], batch)
            for name, make in models.items()
        }
        seconds = measure.interleaved(arms, rounds=rounds)
        one = seconds["one network"]
        found[kind] = {
            name: {"seconds": round(value, 4), "ratio": round(value / one, 3)}
            for name, value in seconds.items()
        }
        print(kind, found[kind], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, nargs="+", default=[1, 3, 9, 16])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--whole", action="store_true", help="as many whole networks, too")
    given = parser.parse_args()
    found = compare(given.experts, given.batch, given.rounds, whole=given.whole)
    measure.write("branches", found)


if __name__ == "__main__":
    main()
