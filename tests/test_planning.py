"""What a plan counts, against numbers by hand and against what training does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.memory import everything
from benchmarks.step import on_noise
from fmoe import assembly, config
from fmoe.attacks import FGSM, NFGSM, PGD, Clean
from fmoe.attacks.kinds import Mix, Shares
from fmoe.config import Config
from fmoe.data.facts import Facts
from fmoe.data.sets import named
from fmoe.errors import UserError
from fmoe.losses import CrossEntropy, Mart, Trades
from fmoe.planning import calibration, memory, passes, study, traffic
from fmoe.planning.machines import GPUS, Machine, link, machine
from fmoe.planning.memory import peak
from fmoe.planning.passes import Passes
from fmoe.planning.plan import Counts, Plan, Planner, Setting, Way, best_of
from fmoe.planning.work import of_module, parts
from fmoe.tuning import search_space
from pipelines.planning import Request, planned, table

CIFAR = named("cifar10").facts
IMAGES = Counts(45_000, 5_000, 10_000)


@pytest.mark.parametrize(
    ("attack", "gradients", "forwards"),
    [
        (Clean(), 0, 0),
        (FGSM(), 1, 0),
        (NFGSM(), 1, 0),
        (PGD(steps=7), 7, 0),
        (PGD(steps=3, loss="kl"), 3, 1),
        (PGD(steps=3, restarts=2), 6, 2),
        (Mix(of=[Clean(), PGD(steps=10)], weights=[1, 0]), 0, 0),
        (Shares(of=[Clean(), PGD(steps=10)], parts=[1, 2]), 20 / 3, 0),
    ],
)
def test_passes_of_attacks(attack: Any, gradients: float, forwards: float) -> None:
    found = passes.of_attack(attack)
    assert found.gradients == pytest.approx(gradients)
    assert found.forwards == pytest.approx(forwards)


def test_passes_of_what_is_drawn_are_the_mean() -> None:
    assert passes.of_attack(PGD(steps=[10, 20, 30, 40, 50])).gradients == pytest.approx(30, abs=2)
    mixed = Mix(of=[Clean(), FGSM(), PGD(steps=10)], weights=[1, 1, 2])
    assert passes.of_attack(mixed).gradients == pytest.approx(5.25, abs=0.4)


@pytest.mark.parametrize(("loss", "count"), [(CrossEntropy(), 1), (Trades(), 2), (Mart(), 2)])
def test_passes_of_losses(loss: Any, count: float) -> None:
    assert passes.of_loss(loss) == count


def test_operations_of_a_layer_by_hand() -> None:
    """3x3 from 3 to 8 channels on 10x10 pixels: 8 * 3 * 9 * 100 multiply-adds, the bias aside."""
    conv = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1, bias=False))
    found = of_module(conv, (3, 10, 10))
    once = 2 * 8 * 3 * 9 * 100
    assert (found.forward, found.crafting, found.training) == (once, 2 * once, 2 * once)
    assert (found.parameters, found.kernels) == (216, 1)


def test_resnet_18_has_its_known_size() -> None:
    """11.17 million parameters, 0.56 billion multiply-adds at 32x32 (kuangliu/pytorch-cifar)."""
    chosen = config.load("cifar10", ["gate={kind: uniform}"])
    found = parts(chosen, CIFAR)
    assert len(found.experts) == 9
    assert found.experts[0].parameters == 11_173_962
    assert found.experts[0].forward / 2 == pytest.approx(0.556e9, rel=0.01)
    assert found.held(4).parameters == 3 * 11_173_962
    assert found.held(9).forward == found.experts[0].forward


def test_parameters_of_a_branched_mixture_are_the_models() -> None:
    chosen = config.load("cifar10-small-branched")
    model = assembly.mixture(chosen)
    assert parts(chosen, CIFAR).all.parameters == sum(p.numel() for p in model.parameters())


def test_traffic_is_what_was_measured() -> None:
    """`benchmarks.sharding`: nine width-16 experts, two workers, batch 32, PGD-10, by the network
    card's own count, which has the packets' headers in it."""
    chosen = config.load(
        "cifar10-small",
        [
            "joint.batch_size=32",
            "experts.backbone={kind: resnet18, width: 16, stem: patch}",
        ],
    )
    of, given = parts(chosen, CIFAR), (Passes(10, 0), 1.0)
    data = traffic.of_step(chosen, CIFAR, of, 2, 1, *given).bytes
    expert = traffic.of_step(chosen, CIFAR, of, 1, 2, *given).bytes
    half = config.validate({**chosen.plain(), "parallel": {"gradients": "bfloat16"}}, "test")
    low = traffic.of_step(half, CIFAR, of, 1, 2, *given).bytes
    assert data == pytest.approx(25.34e6, rel=0.05)
    assert expert == pytest.approx(4.06e6, rel=0.05)
    assert low == pytest.approx(2.09e6, rel=0.05)


@pytest.mark.parametrize("recipe", ["digits", "cifar10-small-branched"])
def test_memory_is_what_an_epoch_needs(recipe: str) -> None:
    """Of a worker of two: counted, all of its tensors, within a fifth."""
    chosen = machine("cpu", 1).computed(config.load(recipe, ["joint.sizes=[]"]))
    facts, share = named(chosen.data.name).facts, chosen.joint.batch_size // 2
    part = Config.model_validate({**chosen.plain(), "parallel": {}})
    settings = part.model_copy(
        update={"joint": part.joint.model_copy(update={"batch_size": share})}
    )
    model = assembly.seeded_mixture(settings)
    made = on_noise(model, settings, settings.joint.attack, settings.precision, 2 * share, facts)
    for _ in range(2):  # momentum comes with the first
        images = made.batches.images.held()
        found = peak(lambda: made.epoch(0, None), everything(made, images.images, images.labels))
    planned = memory.of_step(chosen, facts, 1, share) + images.images.numel()
    assert planned == pytest.approx(found, rel=0.2)


def test_sharing_experts_out_shares_memory_out() -> None:
    chosen = config.load("cifar10-small", ["experts.backbone.width=32"])
    whole, half = (memory.of_step(chosen, CIFAR, peers, 4) for peers in (1, 2))
    assert half == pytest.approx(whole * 5 / 9, rel=0.1)


def tiny(*overrides: str) -> tuple[Config, Facts]:
    quick = (
        "experts.backbone={kind: resnet18, width: 4, stem: patch}", "joint.batch_size=32",
        "experts.roles.fgsm.count=1", "experts.roles.pgd.count=1",
    )  # fmt: skip
    return config.load("cifar10-small", [*quick, *overrides]), CIFAR


def plan_of(workers: int, *overrides: str, speed: float = 1e9, of: Machine | None = None) -> Plan:
    chosen, facts = tiny(*overrides)
    return Planner(chosen, facts, IMAGES, Setting(of or GPUS["a100"], workers, speed)).plan()


def test_ways_are_all_that_there_are() -> None:
    found = plan_of(6, "experts.roles.fgsm.count=4")
    assert [(way.data, way.expert) for way in found.ways] == [(6, 1), (3, 2), (2, 3), (1, 6)]
    assert found.best == min(found.ways, key=lambda way: way.hours)
    assert found.total == pytest.approx(sum(found.hours.values()))


def test_a_slow_link_makes_images_travel_rather_than_experts() -> None:
    large = "experts.backbone={kind: resnet18, width: 32, stem: patch}", "joint.batch_size=8"
    assert plan_of(2, *large, speed=link("100mbit")).best.expert == 2
    few = "joint.attack={kind: pgd, steps: 50}", "joint.batch_size=128"
    assert plan_of(2, *few, speed=link("100mbit")).best.expert == 1


def test_what_the_recipe_says_is_kept() -> None:
    found = plan_of(4, "parallel={data: 2, expert: 2}")
    assert (found.best.data, found.best.expert) == (2, 2)


def test_what_does_not_fit_is_not_the_best() -> None:
    def way(expert: int, hours: float, memory_bytes: float, fits: bool) -> Way:
        return Way(1, expert, 1.0, 0.0, hours, memory_bytes, 0.0, fits)

    assert best_of([way(1, 1, 9, False), way(2, 3, 5, True), way(4, 2, 4, True)]).expert == 4
    assert best_of([way(1, 1, 9, False), way(2, 3, 5, False)]).expert == 2


def test_a_gpu_without_bfloat16_keeps_its_weights_in_float32() -> None:
    """The copy that crafts has half the bytes of a parameter in bfloat16, and all of them on a T4;
    what is made of an image takes at least what it takes in bfloat16."""
    low, exact = (plan_of(1, "precision=bfloat16", of=GPUS[name]) for name in ("a100", "t4"))
    parameters = low.operations["parameters"]
    assert exact.best.memory_bytes - low.best.memory_bytes >= 2 * parameters
    asked = tiny("precision=float32")
    given = Planner(*asked, IMAGES, Setting(GPUS["t4"], 1, 1e9)).plan()
    assert given.best.memory_bytes == exact.best.memory_bytes


def test_a_machine_without_bfloat16_is_calibrated_in_float32() -> None:
    quick = "experts.backbone.width=4", "joint.batch_size=8", "precision=bfloat16"
    chosen, facts = config.load("digits", quick), named("digits").facts
    here = Machine("cpu", {"float32": 1e11}, 1e10, 2e-5, bfloat16=False)
    found = calibration.reached(chosen, facts, here, 1)
    assert found.keys() == {"joint", "experts"}
    assert all(share > 0 for one in found.values() for share in vars(one).values())


def test_twice_the_epochs_are_twice_the_hours() -> None:
    once, twice = (plan_of(1, f"joint.epochs={epochs}") for epochs in (2, 4))
    assert twice.hours["joint"] == pytest.approx(2 * once.hours["joint"])
    assert twice.hours["pool"] == once.hours["pool"]


def test_smaller_images_take_less() -> None:
    slow = Machine("slow", {"float32": 1e12}, 1e12, 0.0, bfloat16=False)
    whole, small = (
        plan_of(1, "joint.epochs=2", f"joint.sizes={sizes}", of=slow) for sizes in ("[]", "[16]")
    )
    assert small.best.seconds < 0.4 * whole.best.seconds


def test_a_study_counts_shared_experts_once() -> None:
    """Each trial asks for up to nine, and most are the same."""
    space, facts = search_space.load("digits"), named("digits").facts
    found = study.plan(space, facts, Counts(1300, 137, 360), Setting(GPUS["a100"], 4, 1e9))
    assert found["trials"] == space.most
    assert found["trials_at_once"] == 4
    assert 0 < found["experts"] < 3 * min(20, space.most)
    waves = found["trials"] / found["trials_at_once"]
    assert found["hours"] == pytest.approx(
        found["hours_by_phase"]["pool"] + waves * found["hours_per_trial"]
    )


@pytest.mark.parametrize(
    ("text", "speed"), [("100mbit", 12.5e6), ("10gbit", 1.25e9), ("1.5Gbit", 187.5e6)]
)
def test_speeds_of_links(text: str, speed: float) -> None:
    assert link(text) == pytest.approx(speed)


@pytest.mark.parametrize("text", ["10", "fast", "-1gbit", "nangbit", "gbit", "10 gbytes"])
def test_other_links_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--link"):
        link(text)


def test_an_unknown_gpu_is_refused() -> None:
    with pytest.raises(UserError, match="a100, h100, l4, t4, cpu"):
        machine("b200", 1)


def test_the_command_has_the_keys_of_the_contract(tmp_path: Path) -> None:
    answer = planned(
        Request("digits", gpus=2, gpu_type="l4", link="1gbit", price=2.5, overrides=())
    )
    assert json.loads(json.dumps(answer)).keys() >= {
        *("hours", "memory_bytes", "bytes_per_step", "parallel", "price"),
    }
    assert answer["price"] == pytest.approx(2.5 * 2 * answer["hours"])
    assert any("data x expert" in line for line in table(answer))


def test_a_plan_that_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(UserError, match="--gpus 64"):
        planned(Request("digits", gpus=64, overrides=["joint.batch_size=8"]))
    with pytest.raises(UserError, match="no recipe and no space"):
        planned(Request("nothing-of-that-name"))
