"""Whether a GPU computes what a CPU does, and what of its peak crafting and a step reach.

Parts of `benchmarks.gpu`, without Ray or MLflow. Bounds stand with each check; `--tiny` takes small
networks, to try the script itself.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import measure
from benchmarks.crafting import ours
from benchmarks.step import on_noise, whole_steps
from fmoe import assembly, config, data
from fmoe.attacks import PGD
from fmoe.attacks.ascent import input_gradient
from fmoe.config import Config
from fmoe.data.sets import named
from fmoe.evaluation import evaluate
from fmoe.numerics.draw import Draw
from fmoe.numerics.precision import Numerics, exact
from fmoe.numerics.worker import Worker
from fmoe.planning.work import parts
from fmoe.training import Training
from fmoe.training.crafting import crafting_view

CIFAR = named("cifar10").facts
ROLES = "experts.roles={pgd: {count: 9, attack: {kind: pgd}}}"
BODIES = {
    "whole": ["experts.start=fresh"],
    "branched": ["experts.start=fresh", "experts.trunk={stages: 3}", "gate={kind: features}"],
}
ATTACK = PGD(eps=8 / 255, step_size=2 / 255, steps=10, random_start=False)


def settings(body: str, width: int, batch: int, *more: str) -> Config:
    backbone = f"experts.backbone={{kind: resnet18, width: {width}}}"
    given = [ROLES, backbone, *BODIES[body], f"joint.batch_size={batch}", *more]
    return config.load("cifar10-small", given)


def lively(model: nn.Module) -> nn.Module:
    """With BatchNorm statistics of noise."""
    with torch.no_grad():
        model.train()(torch.rand(32, *CIFAR.shape, generator=torch.Generator().manual_seed(0)))
    return model.eval()


def images(count: int) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, *CIFAR.shape, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(count) % len(CIFAR.classes)


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference, in units of the largest value."""
    difference = (found.double().cpu() - expected.double().cpu()).abs().max()
    return float(difference / expected.double().abs().max().cpu())


Checks = dict[str, tuple[float, float]]
"""By name: what was found, and what it may be at most."""


def of_body(body: str, device: torch.device, *, width: int, count: int) -> Checks:
    """A mixture on the device against the same on the CPU, both in float32."""
    x, y = images(count)
    model = lively(assembly.seeded_mixture(settings(body, width, count)))
    there, xd, yd = copy.deepcopy(model).to(device), x.to(device), y.to(device)
    low, single = Numerics("bfloat16").fitting(device), Numerics()
    single.prepare(device)
    found: Checks = {}
    with exact():
        out, out_d = model(x).detach(), there(xd).detach()
        gradient, gradient_d = (
            input_gradient(m, a, b, "ce", None) for m, a, b in ((model, x, y), (there, xd, yd))
        )
        found["outputs"] = relative(out_d, out), 1e-4
        found["input gradients"] = relative(gradient_d, gradient), 1e-3
        x_adv, x_adv_d = ATTACK(model, x, y), ATTACK(there, xd, yd)
        apart = ((x_adv_d.cpu() - x_adv).abs() > 1e-4).double().mean()
        found["share of pixels crafted otherwise"] = float(apart), 0.02
        twin = crafting_view(there, single)
        twin.refresh()
        found["folded"] = relative(twin.module(xd).detach(), out_d), 1e-4
        loss, loss_d = (
            torch.nn.functional.nll_loss(there(one.to(device)), yd).item()
            for one in (x_adv, x_adv_d)
        )
        found["loss of what was crafted"] = abs(loss_d / loss - 1), 1e-2
    coarse = crafting_view(there, low)
    coarse.refresh()
    with low.autocast(device):
        out_low = coarse.module(xd).detach()
    found["bfloat16 outputs"] = relative(out_low, out_d), 0.05

    def crafted_low(at: Tensor) -> Tensor:
        with low.autocast(device):
            out: Tensor = coarse.module(at)
        return out

    x_low = ATTACK.perturb(crafted_low, xd, yd, Draw(0))
    with torch.no_grad():
        weaker = 1 - F.nll_loss(there(x_low), yd).item() / loss_d
    found["loss lost by crafting in bfloat16"] = weaker, 0.02
    return {f"{body}: {name}": value for name, value in found.items()}


def graphs(body: str, device: torch.device, *, width: int, count: int) -> Checks:
    """The compiled twin (CUDA graphs on a GPU) against the plain one, also after a refresh."""
    x, y = (one.to(device) for one in images(count))
    model = lively(assembly.seeded_mixture(settings(body, width, count))).to(device)
    found: Checks = {}
    plain, graphed = (
        crafting_view(model, Numerics(compile=compiled)) for compiled in (False, True)
    )
    for name in ("first", "refreshed"):
        gradients = []
        for twin in (plain, graphed):
            twin.refresh()

            def run(at: Tensor, module: nn.Module = twin.module) -> Tensor:
                Numerics(compile=True).begin_pass(device)
                out: Tensor = module(at)
                return out

            with exact():
                gradients.append(input_gradient(run, x, y, "ce", None).float().clone())
        found[f"{body}: compiled gradients, {name}"] = relative(gradients[1], gradients[0]), 1e-3
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)
    return found


def steps(body: str, device: torch.device, *, width: int, count: int) -> Checks:
    """Parameters after a step on the device against the CPU's; the same bits twice, where that is
    asked for."""
    found: Checks = {}
    after = []
    for where in (torch.device("cpu"), device, device):
        torch.manual_seed(0)
        chosen = settings(body, width, count, "joint.optimizer={kind: sgd, lr: 0.01}")
        model = assembly.seeded_mixture(chosen)
        made = on_noise(model, chosen, replace_steps(2), "float32", count)
        made = replace(made, numerics=Numerics(deterministic=True))
        x, y = images(count)
        made.step(0, x.to(where), y.to(where))
        after.append({n: p.detach().cpu().clone() for n, p in made.model.named_parameters()})
    torch.use_deterministic_algorithms(False)
    first, there, again = after
    largest = max(relative(there[name], first[name]) for name in first)
    found[f"{body}: parameters after a step"] = largest, 2e-2
    differing = sum(not torch.equal(there[name], again[name]) for name in there)
    found[f"{body}: tensors that differ the second time"] = float(differing), 0.0
    return found


def replace_steps(count: int) -> PGD:
    return PGD(eps=8 / 255, step_size=4 / 255, steps=count, random_start=False)


def correctness(device: torch.device, *, tiny: bool) -> dict[str, Any]:
    """Every check, and whether all hold."""
    width, count = (4, 8) if tiny else (16, 32)
    found: Checks = {}
    for body in BODIES:
        for check in (of_body, graphs, steps):
            found |= check(body, device, width=width, count=count)
    told = {
        name: {"found": float(f"{value:.3g}"), "at_most": most, "holds": value <= most}
        for name, (value, most) in found.items()
    }
    return {"holds": all(one["holds"] for one in told.values()), "checks": told}


def product_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Operations a second of the device's matrix product."""
    a = torch.randn(side, side, device=device).to(dtype)
    seconds = measure.interleaved({"product": lambda: a @ a}, rounds=10)["product"]
    return 2 * side**3 / seconds


def peer(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    try:
        import torchattacks
    except ImportError:
        return {}
    theirs = torchattacks.PGD(model, eps=8 / 255, alpha=2 / 255, steps=10, random_start=True)
    return {"torchattacks": lambda: theirs(x, y)}


def speed(device: torch.device, *, tiny: bool) -> dict[str, Any]:
    """Crafting PGD-10 and a whole step: images a second, and the share of the matrix product."""
    width, count, side = (4, 16, 256) if tiny else (64, 256, 8192)
    rate = product_rate(device, torch.bfloat16, side)
    found: dict[str, Any] = {"product_bfloat16_operations_a_second": rate}
    for body in BODIES:
        chosen = settings(body, width, count)
        work = parts(chosen, CIFAR).all
        x, y = (one.to(device) for one in images(count))
        model = lively(assembly.seeded_mixture(chosen)).to(device)
        arms: dict[str, Callable[[], object]] = dict(peer(model, x, y))
        for compiled in (False, True):
            name = "compiled" if compiled else "fmoe"
            arms[name] = ours(model, x, y, "bfloat16", compiled=compiled)
        made = on_noise(assembly.seeded_mixture(chosen), chosen, ATTACK, "bfloat16", 2 * count)
        arms["step"] = whole_steps(made)
        seconds = measure.interleaved(arms, rounds=2 if tiny else 4)
        crafted = 10 * work.crafting * count
        operations = dict.fromkeys(arms, crafted) | {"step": crafted + work.training * count}
        found[body] = {
            name: {
                "images_per_second": round(count / value, 1),
                "share_of_product": round(operations[name] / value / rate, 4),
            }
            for name, value in seconds.items()
        }
    return found


def trained(
    body: str, data_dir: str | None, device: torch.device, *, seconds: float, tiny: bool
) -> dict[str, Any]:
    """Nine experts of width 64 on CIFAR-10, FGSM from a random start, for so long; then PGD-20."""
    width, count = (4, 64) if tiny else (64, 256)
    fgsm = "joint.attack={kind: fgsm, eps: 12/255, step_size: 14/255, random_start: true}"
    muon = "joint.optimizer={kind: muon, lr: 0.1, weight_decay: 0.03, sgd_lr: 0.4}"
    smooth = "joint.loss={kind: cross_entropy, label_smoothing: 0.1}"
    chosen = settings(body, width, count, fgsm, muon, smooth, "data.augment={crop: 2, flip: true}")
    loaded = data.load("cifar10", data_dir, val_images=1000)
    torch.manual_seed(0)
    train = loaded.train[:2000] if tiny else loaded.train
    begin, model = time.perf_counter(), assembly.seeded_mixture(chosen)
    epochs = estimated(chosen, train, device, seconds)
    phase = chosen.joint.model_copy(update={"epochs": epochs})
    of = Training(phase, phase.attack, train.to(device), loaded.val, chosen.data.augment, 0,
                  chosen.numerics)  # fmt: skip
    trainer = of.trainer(model, Worker(device=device))
    history = [trainer.epoch(index, None)["train_accuracy"] for index in range(epochs)]
    took = time.perf_counter() - begin
    test = loaded.test[: 200 if tiny else 2000]
    judged = evaluate(model.eval(), test.images, test.labels, attacks=["pgd"], device=device)
    return {
        "epochs": epochs,
        "seconds": round(took, 1),
        "images": len(test),
        "figures": judged.figures,
        "train_accuracy": [round(one, 4) for one in history],
    }


def estimated(chosen: Config, train: Any, device: torch.device, seconds: float) -> int:
    """Epochs that fit, by the time of a few steps."""
    made = on_noise(assembly.seeded_mixture(chosen), chosen, chosen.joint.attack,
                    chosen.precision, 2 * chosen.joint.batch_size)  # fmt: skip
    step = measure.interleaved({"step": whole_steps(made)}, rounds=4)["step"]
    return max(1, int(0.9 * seconds / (step * (len(train) // chosen.joint.batch_size))))
