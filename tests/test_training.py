"""The training step and the epoch generator, in one process, on width-4 networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fmoe import assembly, config, training
from fmoe.attacks import FGSM, PGD, Attack, AttackConfig, Clean, Mix
from fmoe.config import Config, Joint, Phase, Update
from fmoe.data import Data, Split
from fmoe.data.augment import Augment
from fmoe.data.batches import Batches
from fmoe.errors import NonFiniteLoss, UserError
from fmoe.losses import gate_balance
from fmoe.models.mixture import Mixture, keeping_buffers
from fmoe.numerics.draw import Draw
from fmoe.numerics.precision import Numerics, multiplies_bfloat16
from fmoe.numerics.worker import Worker
from fmoe.training import Epoch, Trainer, validation
from fmoe.training.checks import check_phases
from fmoe.training.selection import best_epoch, overfitted, selection
from fmoe.training.step_loss import StepLoss
from fmoe.training.trainer import weights_moved
from tests.conftest import MEMBER, SMALL

QUICK = [
    "experts.train.batch_size=32",
    "joint.batch_size=32",
    "joint.epochs=1",
    "joint.optimizer.schedule={kind: constant}",
    "joint.attack={kind: pgd, eps: 0.1, steps: 2}",
    "joint.validation.attack={kind: fgsm, eps: 0.1}",
]


def settings(*overrides: str) -> Config:
    return config.load("digits-whole", [*SMALL, *QUICK, *overrides])


def running(
    model: nn.Module, chosen: Config, data: Data, *, seed: int = 0, images: int = 64, **more: Any
) -> Iterator[Epoch]:
    """The joint phase of `chosen` on the first images."""
    return training.epochs(
        model,
        training.Training(
            chosen.joint,
            chosen.joint.attack,
            data.train[:images],
            data.val,
            chosen.data.augment,
            seed,
            chosen.numerics,
        ),
        **more,
    )


def run(model: nn.Module, chosen: Config, data: Data, **more: Any) -> list[Epoch]:
    return list(running(model, chosen, data, **more))


def trainer(
    model: nn.Module,
    data: Data,
    phase: Phase,
    attack: AttackConfig,
    *,
    update: Update = "all",
    numerics: Numerics | None = None,
) -> Trainer:
    batches = Batches(data.train[:128], phase.batch_size, Augment(crop=1), seed=0)
    return Trainer(model, phase, attack, batches, Worker(), numerics or Numerics(), update)


def joint_trainer(chosen: Config, data: Data) -> tuple[Mixture, Trainer]:
    model = assembly.seeded_mixture(chosen)
    joint = chosen.joint
    made = trainer(model, data, joint, joint.attack, update=joint.update, numerics=chosen.numerics)
    return model, made


def copy(tensors: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


# determinism


def test_two_runs_give_the_same_bits(digits: Data) -> None:
    chosen = settings(
        "joint.epochs=2", "joint.attack={kind: mix, of: [{kind: clean}, {kind: pgd, steps: 2}]}"
    )
    states = []
    for global_seed in (1, 2):  # torch's own generator decides nothing
        torch.manual_seed(global_seed)
        model = assembly.seeded_mixture(chosen)
        run(model, chosen, digits)
        states.append(model.state_dict())
    assert changed(*states) == set()


def test_another_seed_gives_another_model(digits: Data) -> None:
    states = []
    for seed in (0, 1):
        model = assembly.seeded_mixture(settings())
        run(model, settings(), digits, seed=seed)
        states.append(model.state_dict())
    assert changed(*states)


def test_training_leaves_the_global_generator_alone(digits: Data) -> None:
    before = torch.get_rng_state()
    run(assembly.seeded_mixture(settings()), settings(), digits)
    assert torch.equal(torch.get_rng_state(), before)


# What this very test computed on 2026-11-21: torch 2.14.1, one thread of an x86-64 CPU. The same
# without oneDNN differs by 3e-6.
GOLDEN = [2.655142, 2.767967, 2.559563]


def test_golden_loss_of_three_steps(digits: Data) -> None:
    chosen = settings("experts.train.optimizer={lr: 0.02, schedule: {kind: constant}}")
    model = assembly.seeded_expert(chosen, MEMBER, seed=0)
    attack = PGD(eps=0.1, step_size=0.05, steps=2)
    made = trainer(model, digits, chosen.experts.train, attack)
    batches = list(made.batches.epoch(0))[:3]
    losses = [made.step(i, x, y)[0][0].item() / 32 for i, (x, y) in enumerate(batches)]
    assert losses == pytest.approx(GOLDEN, abs=1e-4)


# crafting


@pytest.mark.parametrize("crafting", ["eval", "train"])
def test_a_step_counts_one_batch_whatever_the_attack(digits: Data, crafting: str) -> None:
    chosen = settings(f"joint.crafting={crafting}", "joint.attack={kind: pgd, steps: 10}")
    model, made = joint_trainer(chosen, digits)
    made.step(0, *next(made.batches.epoch(0)))
    counters = [b for name, b in model.named_buffers() if name.endswith("num_batches_tracked")]
    assert len(counters) > 20
    assert {int(counter) for counter in counters} == {1}


@pytest.mark.parametrize("crafting", ["eval", "train"])
def test_crafting_touches_nothing(digits: Data, crafting: str) -> None:
    model, made = joint_trainer(settings(f"joint.crafting={crafting}"), digits)
    x, y = next(made.batches.epoch(0))
    kept = copy(iter(model.state_dict().items()))
    x_adv = made.craft(PGD(eps=0.1, steps=10), x, y, Draw(0))
    assert changed(kept, model.state_dict()) == set()
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not x_adv.requires_grad
    assert 0 < (x_adv - x).abs().max() <= 0.1 + 1e-6


def test_crafting_on_batch_statistics_differs(digits: Data) -> None:
    made = {}
    for crafting in ("eval", "train"):
        _, one = joint_trainer(settings(f"joint.crafting={crafting}"), digits)
        made[crafting] = one.craft(FGSM(eps=0.1), *next(one.batches.epoch(0)), Draw(0))
    assert not torch.equal(made["eval"], made["train"])


# what learns


@pytest.mark.parametrize("update", ["all", "heads", "gate"])
@pytest.mark.parametrize("crafting", ["eval", "train"])
def test_update_changes_only_what_it_names(digits: Data, update: str, crafting: str) -> None:
    chosen = settings(f"joint.update={update}", f"joint.crafting={crafting}")
    model, made = joint_trainer(chosen, digits)
    # running statistics unlike those of a batch, so that a change would show
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.fill_(0.25)
    parameters, buffers = copy(model.named_parameters()), copy(model.named_buffers())
    for index, (x, y) in zip(range(2), made.batches.epoch(0), strict=False):
        made.step(index, x, y)

    def learns(name: str) -> bool:
        head = name.startswith("experts.") and ".head." in name
        return update == "all" or name.startswith("gate.") or (update == "heads" and head)

    assert changed(parameters, dict(model.named_parameters())) == set(filter(learns, parameters))
    moved = {
        name for name in changed(buffers, dict(model.named_buffers())) if "normalize" not in name
    }
    of_gate = {name for name in moved if name.startswith("gate.")}
    assert len(of_gate) == 6  # mean, variance and counter of two BatchNorms
    assert (moved == of_gate) == (update != "all")


# failures


def poison(model: nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)


def test_a_loss_that_is_not_finite_names_step_and_attack(digits: Data) -> None:
    chosen = settings("joint.attack={kind: pgd, eps: [0.03, 0.05, 0.07], steps: 1}")
    model = assembly.seeded_mixture(chosen)

    def progress(epoch: int, step: int, steps: int) -> None:
        if step == 2:
            poison(model)

    # steps 0 and 1 are finite; 2 and 3 are not, and the first is to be named
    drawn = chosen.joint.attack.sample(Draw(0, "attack", 2))
    with pytest.raises(NonFiniteLoss) as caught:
        run(model, chosen, digits, images=128, progress=progress)
    assert "at step 2," in str(caught.value)
    assert repr(drawn) in str(caught.value)


def test_an_epoch_that_fails_is_not_yielded(digits: Data) -> None:
    chosen = settings("joint.epochs=2", "joint.attack={kind: clean}")
    model = assembly.seeded_mixture(chosen)
    epochs = running(model, chosen, digits)
    assert next(epochs).index == 0
    poison(model)
    with pytest.raises(NonFiniteLoss, match="at step 2, with the attack Clean"):
        next(epochs)


# selection


def history(*scores: tuple[float, float]) -> list[dict[str, float]]:
    return [{"val_clean": clean, "val_robust": robust} for clean, robust in scores]


@pytest.mark.parametrize(
    ("attack", "score"),
    [(Clean(), 0.9), (FGSM(), 0.3), (PGD(), 0.3), (Mix(of=[Clean(), PGD()]), 0.3)],
)
def test_selection_is_robust_unless_training_is_clean(attack: Attack, score: float) -> None:
    assert selection({"val_clean": 0.9, "val_robust": 0.3}, attack) == score


@pytest.mark.parametrize(
    ("attack", "best"),
    [(Clean(), 0), (PGD(), 1)],
)
def test_best_epoch_is_the_first_of_the_best(attack: Attack, best: int) -> None:
    scores = history((0.9, 0.1), (0.8, 0.4), (0.9, 0.4), (0.7, 0.3))
    assert best_epoch(scores, attack) == best


def validate_as(monkeypatch: pytest.MonkeyPatch, robust: list[float]) -> None:
    scores = iter(robust)

    def validate(*given: object) -> dict[str, float]:
        robust = next(scores)
        return {"val_clean": 0.5, "val_robust": robust, "val_fgsm": robust}

    monkeypatch.setattr("fmoe.training.loop.validation_accuracies", validate)


@pytest.mark.parametrize(
    ("patience", "seen"),
    [(1, [0, 1, 2]), (2, [0, 1, 2, 3, 4, 5]), (None, [0, 1, 2, 3, 4, 5])],
)
def test_patience_counts_epochs_without_a_better_one(
    digits: Data, monkeypatch: pytest.MonkeyPatch, patience: int | None, seen: list[int]
) -> None:
    validate_as(monkeypatch, [0.1, 0.3, 0.3, 0.4, 0.2, 0.4])
    chosen = settings(
        "joint.epochs=6", f"joint.patience={patience or 'null'}", "joint.attack={kind: fgsm}"
    )
    epochs = run(assembly.seeded_expert(chosen, MEMBER, 0), chosen, digits, images=32)
    assert [epoch.index for epoch in epochs] == seen
    assert [epoch.best for epoch in epochs] == [0, 1, 1, 3, 3, 3][: len(seen)]


# objectives


def test_metrics_of_a_mixture(digits: Data) -> None:
    (epoch,) = run(assembly.seeded_mixture(settings()), settings(), digits)
    weights = [epoch.metrics[f"gate_weight_{i}"] for i in range(3)]
    assert set(epoch.metrics) == {
        "train_loss",
        "train_accuracy",
        "val_clean",
        "val_robust",
        "lr",
        "seconds",
        "train_seconds",
        "crafting_seconds",
        "descent_seconds",
        "data_seconds",
        "images_per_second",
        "workers",
        *(f"gate_weight_{i}" for i in range(3)),
    }
    assert sum(weights) == pytest.approx(1, abs=1e-5)
    assert min(weights) > 0
    assert all(isinstance(value, float) for value in epoch.metrics.values())
    assert 0 < epoch.metrics["train_seconds"] <= epoch.metrics["seconds"]


def test_an_expert_has_no_gate_weights(digits: Data) -> None:
    (epoch,) = run(assembly.seeded_expert(settings(), MEMBER, 0), settings(), digits, images=32)
    assert not [name for name in epoch.metrics if name.startswith("gate")]


def test_training_learns(digits: Data) -> None:
    chosen = settings("joint.epochs=3", "joint.attack={kind: clean}", "joint.optimizer.lr=0.05")
    epochs = run(assembly.seeded_expert(chosen, MEMBER, 0), chosen, digits, images=256)
    losses = [epoch.metrics["train_loss"] for epoch in epochs]
    assert losses[-1] < 0.9 * losses[0]


def test_trades_with_its_own_attack(digits: Data) -> None:
    chosen = settings(
        "joint.loss={kind: trades, beta: 3}",
        "joint.attack={kind: pgd, eps: 0.1, steps: 2, loss: kl}",
    )
    (epoch,) = run(assembly.seeded_mixture(chosen), chosen, digits)
    assert 0 < epoch.metrics["train_loss"] < 10


def test_balance_is_added_to_the_loss(digits: Data) -> None:
    model = assembly.seeded_mixture(settings()).eval()
    batch = digits.train[:32]
    x, y = batch.pixels(), batch.labels
    losses = []
    for balance in (0.0, 2.0):
        phase = Joint(batch_size=32, balance=balance)
        losses.append(StepLoss(model, phase, Numerics(), world_size=1)(x, x, y)[0])
    with torch.no_grad():
        expected = 2 * gate_balance(model.gate_weights(x))
    assert expected > 0
    assert (losses[1] - losses[0]).item() == pytest.approx(expected.item(), abs=1e-5)


def test_balance_evens_the_gate_out(digits: Data) -> None:
    spread = {}
    for balance in (0, 5):
        chosen = settings(
            "joint.update=gate",
            "joint.attack={kind: clean}",
            "joint.epochs=3",
            "joint.optimizer.lr=0.02",
            f"joint.balance={balance}",
        )
        model = assembly.seeded_mixture(chosen)
        with torch.no_grad():  # the first expert's weight is about 0.8
            model.gate.get_parameter("head.bias").copy_(torch.tensor([2.0, 0, 0]))
        metrics = run(model, chosen, digits)[-1].metrics
        weights = [metrics[f"gate_weight_{i}"] for i in range(3)]
        spread[balance] = max(weights) - min(weights)
    assert spread[5] < 0.6 * spread[0]


def test_bfloat16_stays_finite_and_keeps_float32_weights(digits: Data) -> None:
    chosen = settings("precision=bfloat16")
    model = assembly.seeded_mixture(chosen)
    (epoch,) = run(model, chosen, digits)
    full = assembly.seeded_mixture(chosen)
    (reference,) = run(full, settings(), digits)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert epoch.metrics["train_loss"] == pytest.approx(reference.metrics["train_loss"], rel=0.1)
    by_float32 = epoch.metrics["train_loss"] == reference.metrics["train_loss"]
    assert by_float32 is not multiplies_bfloat16(torch.device("cpu"))


# validation and the loop


def test_validation_shards_add_up(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ranks' counts, summed here instead of by a process group; two batches, 270 images."""
    model = assembly.seeded_mixture(settings())
    attacks = {"clean": Clean(), "fgsm": FGSM(eps=0.1, random_start=True)}
    split = digits.train[:270]
    run(model, settings(), digits)
    whole = validation.validation_accuracies(model, split, attacks, 5, Worker())
    monkeypatch.setattr(validation, "reduce_sum", lambda counts, worker: counts)
    parts = [
        validation.validation_accuracies(model, split, attacks, 5, Worker(rank, world_size=4))
        for rank in range(4)
    ]
    for name, value in whole.items():
        assert sum(part[name] for part in parts) == pytest.approx(value)
    assert whole["fgsm"] <= whole["clean"]


def test_progress_is_told_after_every_step(digits: Data) -> None:
    told: list[tuple[int, int, int]] = []
    chosen = settings("joint.epochs=2", "joint.attack={kind: clean}")
    run(
        assembly.seeded_expert(chosen, MEMBER, 0),
        chosen,
        digits,
        images=70,  # the incomplete third batch is left out
        progress=lambda *given: told.append(given),
    )
    assert told == [(0, 1, 2), (0, 2, 2), (1, 1, 2), (1, 2, 2)]


def test_every_step_has_its_learning_rate(digits: Data) -> None:
    chosen = settings("joint.optimizer.schedule={kind: cyclic}", "joint.attack={kind: clean}")
    _, made = joint_trainer(chosen, digits)
    rates = []
    for index, (x, y) in enumerate(made.batches.epoch(0)):
        made.step(index, x, y)
        ((optimizer, _),) = made.optimizers.parts
        rates.append(optimizer.param_groups[0]["lr"])
    # 0.2 * factor: (step + 0.5) / 4 done, the peak at 0.2 of the run
    assert rates == pytest.approx([0.2 * 0.625, 0.2 * 0.78125, 0.2 * 0.46875, 0.2 * 0.15625])


# memory


def after_a_step(digits: Data, *overrides: str) -> dict[str, Tensor]:
    model, made = joint_trainer(settings(*overrides), digits)
    made.step(0, *next(made.batches.epoch(0)))
    return model.state_dict()


@pytest.mark.parametrize("attack", ["{kind: pgd, eps: 0.1, steps: 2}", "{kind: fgsm, eps: 0.1}"])
def test_checkpointing_changes_no_number(digits: Data, attack: str) -> None:
    """The same weights, and BatchNorm's statistics move once a step, not twice."""
    plain = after_a_step(digits, f"joint.attack={attack}")
    checkpointed = after_a_step(digits, f"joint.attack={attack}", "joint.checkpointing=true")
    for name, tensor in plain.items():
        torch.testing.assert_close(checkpointed[name], tensor, rtol=1e-4, atol=1e-6)


def test_parts_of_a_batch_add_up(digits: Data) -> None:
    """With frozen experts and statistics a batch in four parts gives the whole batch's update."""
    pgd = "joint.attack={kind: pgd, eps: 0.1, steps: 3}"
    frozen = ["joint.update=gate", "gate={kind: linear}", pgd]
    whole = after_a_step(digits, *frozen)
    in_parts = after_a_step(digits, *frozen, "joint.accumulate=4")
    moved = changed(dict(assembly.seeded_mixture(settings(*frozen)).named_parameters()), whole)
    assert moved
    for name, tensor in whole.items():
        torch.testing.assert_close(in_parts[name], tensor, rtol=1e-4, atol=1e-6)


def test_more_parts_than_images_are_refused(digits: Data) -> None:
    with pytest.raises(UserError, match=r"accumulate: 33 parts .* less than two images"):
        joint_trainer(settings("joint.accumulate=33"), digits)


# catastrophic overfitting


@pytest.mark.parametrize(
    ("robust", "fgsm", "overfits"),
    [(0.15, 0.9, True), (0.15, 0.3, False), (0.25, 0.9, False), (0.5, 0.9, False)],
)
def test_overfitting_is_pgd_lost_while_fgsm_is_not(
    robust: float, fgsm: float, overfits: bool
) -> None:
    before = [{"val_robust": 0.4, "val_fgsm": 0.5}, {"val_robust": 0.3, "val_fgsm": 0.6}]
    assert overfitted(before, {"val_robust": robust, "val_fgsm": fgsm}) == overfits
    assert not overfitted([], {"val_robust": robust, "val_fgsm": fgsm})


def test_overfitting_goes_back_to_the_last_good_epoch(
    digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([(0.4, 0.5), (0.1, 0.9), (0.5, 0.5)])

    def validate(*given: object) -> dict[str, float]:
        robust, fgsm = next(scores)
        return {"val_clean": 0.6, "val_robust": robust, "val_fgsm": fgsm}

    monkeypatch.setattr("fmoe.training.loop.validation_accuracies", validate)
    chosen = settings("joint.epochs=3", "joint.attack={kind: fgsm, eps: 0.1}",
                      "joint.validation.attack={kind: pgd, eps: 0.1, steps: 2}")  # fmt: skip
    model = assembly.seeded_expert(chosen, MEMBER, 0)
    states = []
    for epoch in running(model, chosen, digits):
        states.append({name: t.clone() for name, t in model.state_dict().items()})
        assert ("overfitted" in epoch.metrics) == (epoch.index == 1)
    first, second, third = states
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(second[name], third[name]) for name in first)


def test_fgsm_is_judged_beside_pgd_only(digits: Data) -> None:
    for override, judged in (
        ("joint.attack={kind: fgsm, eps: 0.1}", True),
        ("joint.attack={kind: clean}", False),
        ("joint.guard=false", False),
    ):
        chosen = settings("joint.validation.attack={kind: pgd, eps: 0.1, steps: 2}", override)
        epoch, *_ = run(assembly.seeded_expert(chosen, MEMBER, 0), chosen, digits, images=32)
        assert ("val_fgsm" in epoch.metrics) == judged


def test_numbers_do_not_depend_on_compiling(digits: Data) -> None:
    chosen = ["joint.attack={kind: fgsm, eps: 0.1}", "experts.roles.fgsm.count=0"]
    plain = after_a_step(digits, *chosen)
    with_compiler = after_a_step(digits, *chosen, "compile=true")
    for name, tensor in plain.items():
        torch.testing.assert_close(with_compiler[name], tensor, rtol=1e-3, atol=1e-4)


def test_weights_are_moved_up_the_loss_by_a_share_of_their_norm_and_back() -> None:
    """On a linear model by hand: the kernel, not the bias."""
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 4.0]]))
    torch.autograd.backward(model(torch.tensor([[0.0, 2.0]])).sum())  # gradient (0, 2), norm 2
    bias = model.bias.detach().clone()
    with weights_moved(model, 0.1):
        torch.testing.assert_close(model.weight, torch.tensor([[3.0, 4.5]]))  # 0.1 * 5 along (0, 1)
        assert torch.equal(model.bias, bias)
    assert torch.equal(model.weight, torch.tensor([[3.0, 4.0]]))


def test_a_step_with_perturbed_weights_descends_their_gradient(digits: Data) -> None:
    """What the optimizer is given is the gradient at the moved weights; statistics are those of
    the second pass alone, and the figures those of the first."""
    clean = ["joint.attack={kind: clean}", "joint.batch_size=32"]
    x, y, chosen = digits.train[:32].pixels(), digits.train.labels[:32], settings(*clean)
    found = {}
    for awp in (0.0, 0.05):
        model, made = joint_trainer(settings(*clean, f"joint.awp={awp}"), digits)
        found[awp] = model, made.step(0, x, y)[0]
    expected = assembly.seeded_mixture(chosen)
    loss = StepLoss(expected, chosen.joint, Numerics(), world_size=1)
    with keeping_buffers(expected.train()):
        torch.autograd.backward(loss(x, x, y)[0])
    with weights_moved(expected, 0.05):
        expected.zero_grad()
        torch.autograd.backward(loss(x, x, y)[0])
    (moved, sums), (_, plain) = found[0.05], found[0.0]
    assert torch.equal(sums, plain)
    gradients = dict(expected.named_parameters())
    for name, parameter in moved.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradients[name].grad)
    for (name, buffer), (_, other) in zip(
        moved.named_buffers(), expected.named_buffers(), strict=True
    ):
        torch.testing.assert_close(buffer, other, msg=name)


def test_settings_of_a_phase_that_is_not_trained_refuse_nothing(digits: Data) -> None:
    few = Split(digits.train.images[:50], digits.train.labels[:50])
    small = "joint.batch_size=16"
    check_phases(config.load("digits-single", [small]), few, 1)
    for too_much in ("experts.start=pretrained", "joint.batch_size=64"):
        with pytest.raises(UserError, match="batch_size: 64 is more than the 50 training images"):
            check_phases(config.load("digits-single", [small, too_much]), few, 1)
