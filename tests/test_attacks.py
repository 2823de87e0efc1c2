"""The laws every attack obeys, and values computed by hand on linear models."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from fmoe.attacks import (
    FGSM,
    NFGSM,
    PGD,
    Attack,
    AttackConfig,
    Clean,
    Mix,
    Objective,
    Shares,
    clean_probabilities,
    margin,
    objective_loss,
    threat,
)
from fmoe.models.experts import ResNet18
from fmoe.numerics.draw import Draw, shard

EPS = 0.1  # the largest of the table below
ROUNDING = 1e-6
OBJECTIVES: tuple[Objective, ...] = ("ce", "margin", "kl")
LISTS = PGD(eps=[0.02, 0.05, EPS], step_size=[0.01, 0.02], steps=[1, 2, 3])
TABLE: dict[str, Attack] = {
    "clean": Clean(),
    "fgsm": FGSM(eps=EPS),
    "fgsm step_size": FGSM(eps=EPS, step_size=0.03),
    "fgsm random start": FGSM(eps=EPS, step_size=1.25 * EPS, random_start=True),
    "fgsm margin": FGSM(eps=EPS, loss="margin"),
    "fgsm kl": FGSM(eps=EPS, loss="kl", random_start=True),
    "fgsm lists": FGSM(eps=[0.02, EPS]),
    "pgd": PGD(eps=EPS, steps=3),
    "pgd no random start": PGD(eps=EPS, steps=3, random_start=False),
    "pgd restarts": PGD(eps=EPS, steps=2, restarts=3),
    "pgd margin": PGD(eps=EPS, steps=2, restarts=2, loss="margin"),
    "pgd kl": PGD(eps=EPS, steps=2, restarts=2, loss="kl"),
    "pgd large steps": PGD(eps=EPS, step_size=1, steps=2),
    "pgd lists": LISTS,
    "shares": Shares(of=[Clean(), FGSM(eps=EPS, random_start=True), LISTS], parts=[1, 2, 1]),
    "mix": Mix(of=[Clean(), FGSM(eps=EPS), LISTS], weights=[1, 1, 2]),
    "mix of mixes": Mix(of=[Mix(of=[FGSM(eps=EPS)]), Mix(of=[PGD(eps=EPS, steps=1)])]),
}
every_attack = pytest.mark.parametrize("attack", TABLE.values(), ids=TABLE.keys())


class LinearSoftmax(nn.Module):
    """Logits W x + b of the flattened pixels: a smooth model, cross-entropy is convex in x."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(len(weight)) if bias is None else bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


def random_linear(seed: int = 0, classes: int = 5, pixels: int = 9) -> LinearSoftmax:
    generator = torch.Generator().manual_seed(seed)
    return LinearSoftmax(torch.randn(classes, pixels, generator=generator))


def random_batch(
    images: int = 16, shape: tuple[int, int, int] = (1, 3, 3), classes: int = 5, seed: int = 1
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((images, *shape), generator=generator)
    return x, torch.randint(classes, (images,), generator=generator)


@pytest.fixture
def net() -> ResNet18:
    torch.manual_seed(0)
    return ResNet18(mean=(0.3, 0.4, 0.5), std=(0.2, 0.3, 0.4), classes=5, width=4)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return random_batch(6, (3, 8, 8))


# laws


@every_attack
def test_stays_in_the_ball_and_in_the_unit_cube(
    attack: Attack, net: ResNet18, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    x[:, :, :2], x[:, :, 2:4] = 0, 1  # clipping has to work at both ends
    x_adv = attack(net, x, y, draw=Draw(0))
    assert (x_adv - x).abs().max() <= EPS + ROUNDING
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert x_adv.shape == x.shape
    assert x_adv.dtype == torch.float32
    assert not x_adv.requires_grad


@every_attack
def test_keeps_float64(attack: Attack, net: ResNet18, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch[0].double(), batch[1]
    assert attack(net.double(), x, y, draw=Draw(0)).dtype == torch.float64


@every_attack
def test_leaves_images_and_labels_alone(
    attack: Attack, net: ResNet18, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch[0].clone(), batch[1].clone()
    attack(net, x, y, draw=Draw(0))
    assert torch.equal(x, batch[0])
    assert torch.equal(y, batch[1])
    assert not x.requires_grad


@every_attack
def test_leaves_a_training_module_as_it_was(
    attack: Attack, net: ResNet18, batch: tuple[Tensor, Tensor]
) -> None:
    net.train()
    net.bn.eval()  # one submodule is frozen: the modes are mixed
    net.conv.weight.grad = torch.full_like(net.conv.weight, 7)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    modes = {name: module.training for name, module in net.named_modules()}
    attack(net, *batch, draw=Draw(0))
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert torch.equal(net.conv.weight.grad, torch.full_like(net.conv.weight, 7))
    others = [p for name, p in net.named_parameters() if name != "conv.weight"]
    assert all(p.grad is None for p in others)
    assert all(p.requires_grad for p in net.parameters())


@every_attack
def test_the_modes_come_back_after_an_error(attack: Attack) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ArithmeticError

    model = Broken().train()
    if not isinstance(attack, Clean | Mix):
        with pytest.raises(ArithmeticError):
            attack(model, *random_batch(), draw=Draw(0))
    assert model.training


@every_attack
def test_same_draw_same_images(attack: Attack, net: ResNet18, batch: tuple[Tensor, Tensor]) -> None:
    before = torch.get_rng_state()
    first, second = (attack(net, *batch, draw=Draw(3, "step")) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)  # the global generator has no part in it


@every_attack
def test_crafts_on_the_module_in_eval_mode(
    attack: Attack, net: ResNet18, batch: tuple[Tensor, Tensor]
) -> None:
    in_training = attack(net.train(), *batch, draw=Draw(0))
    assert torch.equal(in_training, attack(net.eval(), *batch, draw=Draw(0)))


@every_attack
def test_works_where_gradients_are_off(
    attack: Attack, net: ResNet18, batch: tuple[Tensor, Tensor]
) -> None:
    expected = attack(net, *batch, draw=Draw(0))
    with torch.no_grad():
        assert torch.equal(attack(net, *batch, draw=Draw(0)), expected)


@every_attack
def test_the_model_sees_float_images_only(attack: Attack) -> None:
    linear = random_linear()
    seen: list[Tensor] = []

    def model(x: Tensor) -> Tensor:  # any callable will do
        seen.append(x.detach())
        return linear.forward(x)

    attack(model, *random_batch(), draw=Draw(0))
    assert seen or isinstance(attack, Clean | Mix)
    assert all(x.dtype == torch.float32 and x.shape[1:] == (1, 3, 3) for x in seen)
    assert all(len(x) == 16 for x in seen) or isinstance(attack, Shares)
    assert all(x.min() >= 0 and x.max() <= 1 for x in seen)


@pytest.mark.parametrize("attack", [FGSM(random_start=True), PGD()], ids=["fgsm", "pgd"])
def test_another_draw_starts_elsewhere(attack: Attack) -> None:
    model, (x, y) = random_linear(), random_batch()
    small = attack.model_copy(update={"eps": EPS, "step_size": 0.001})  # the start still shows
    assert not torch.equal(small(model, x, y, draw=Draw(0)), small(model, x, y, draw=Draw(1)))


def test_without_a_draw_the_global_seed_decides() -> None:
    model, (x, y) = random_linear(), random_batch()
    torch.manual_seed(5)
    first = PGD(steps=1)(model, x, y)
    second = PGD(steps=1)(model, x, y)
    torch.manual_seed(5)
    assert torch.equal(PGD(steps=1)(model, x, y), first)
    assert not torch.equal(first, second)


def built(kind: str, eps: float, steps: int, loss: Objective, norm: str = "linf") -> Attack:
    match kind:
        case "fgsm":
            return FGSM(eps=eps, loss=loss, norm=norm)
        case "fgsm random start":
            return FGSM(
                eps=eps, step_size=min(1, 1.25 * eps), random_start=True, loss=loss, norm=norm
            )
        case "pgd":
            return PGD(eps=eps, steps=steps, random_start=False, loss=loss, norm=norm)
        case "shares":
            parts = [built("pgd", eps, steps, loss, norm), built("fgsm", eps, steps, loss, norm)]
            return Shares(of=parts)
    return PGD(eps=eps, steps=steps, restarts=2, loss=loss, norm=norm)


KINDS = ["fgsm", "fgsm random start", "pgd", "pgd restarts", "shares"]
NORMS = list(threat.kinds())


@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    norm=st.sampled_from(NORMS),
    eps=st.floats(0, 0.8),
    steps=st.integers(1, 6),
    loss=st.sampled_from(OBJECTIVES),
    scale=st.sampled_from([1.0, 1e-3, 1e-30, 1e3]),
    seed=st.integers(0, 2**16),
)
def test_any_eps_and_steps_stay_in_the_ball(
    kind: str, norm: str, eps: float, steps: int, loss: Objective, scale: float, seed: int
) -> None:
    """scale: of the logits, so that gradients may be very small."""
    linear, (x, y) = random_linear(seed), random_batch(seed=seed)
    attack = built(kind, eps, steps, loss, norm)
    x_adv = attack(lambda images: scale * linear(images), x, y, draw=Draw(seed))
    moved = (x_adv - x).flatten(1)
    lengths = moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)
    assert lengths.max() <= eps + ROUNDING
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert x_adv.isfinite().all()


@pytest.mark.parametrize("loss", OBJECTIVES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", NORMS)
def test_eps_0_returns_the_images(norm: str, kind: str, loss: Objective) -> None:
    model, (x, y) = random_linear(), random_batch()
    assert torch.equal(built(kind, 0, 4, loss, norm)(model, x, y, draw=Draw(0)), x)


# the objective rises


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_pgd_from_the_image_never_lowers_a_convex_loss(loss: Objective) -> None:
    # cross-entropy and margin are convex in x here, so a step along the sign never lowers them
    model, (x, y) = random_linear(), random_batch()
    losses = [objective_loss(loss, model(x), y, None)]
    for steps in range(1, 8):
        x_adv = PGD(eps=EPS, steps=steps, random_start=False, loss=loss)(model, x, y)
        losses.append(objective_loss(loss, model(x_adv), y, None))
    assert all((after >= before - 1e-5).all() for before, after in pairwise(losses))
    assert (losses[-1] > losses[0] + 0.1).all()


def test_kl_leaves_the_clean_prediction() -> None:
    model, (x, y) = random_linear(), random_batch()
    clean = clean_probabilities(model, x, "kl")
    noisy, attacked = (
        objective_loss("kl", model(PGD(eps=EPS, steps=n, loss="kl")(model, x, y)), y, clean)
        for n in (1, 10)
    )
    assert (attacked > 0).all()
    assert attacked.mean() > noisy.mean()


def test_kl_does_not_look_at_the_labels() -> None:
    model, (x, y) = random_linear(), random_batch()
    attack = PGD(eps=EPS, steps=3, loss="kl")
    first, second = (attack(model, x, labels, draw=Draw(0)) for labels in (y, (y + 1) % 5))
    assert torch.equal(first, second)


@pytest.mark.parametrize("loss", OBJECTIVES)
def test_restarts_never_do_worse_than_one(loss: Objective, net: ResNet18) -> None:
    net.eval()
    x = random_batch(32, (3, 8, 8))[0]
    y = net(x).argmax(1)
    clean = clean_probabilities(net, x, loss)

    def outcome(restarts: int) -> tuple[Tensor, Tensor]:
        attack = PGD(eps=0.03, steps=1, restarts=restarts, loss=loss)
        logits = net(attack(net, x, y, draw=Draw(0)))  # the first restart is the same for all
        return logits.argmax(1) != y, objective_loss(loss, logits, y, clean)

    outcomes = [outcome(restarts) for restarts in (1, 2, 5)]
    for (wrong, value), (wrong_more, value_more) in pairwise(outcomes):
        assert (wrong <= wrong_more).all()
        assert (value <= value_more + 1e-6)[wrong == wrong_more].all()
    assert (outcomes[-1][1] > outcomes[0][1]).any()


def test_restarts_prefer_a_misclassified_image_to_a_higher_loss() -> None:
    # every restart ends at a random pixel u, for the gradient is 0. Cross-entropy of class 0:
    # u > 0.5: wrong, log(1 + e^0.1) = 0.744; else right, log(1 + 3 e^-0.1) = 1.312, yet larger
    wrong, right = torch.tensor([0.0, 0.1, -99, -99]), torch.tensor([0.1, 0.0, 0.0, 0.0])

    def model(x: Tensor) -> Tensor:
        u = x.flatten(1)
        return torch.where(u > 0.5, wrong, right) + 0 * u

    x, y = torch.full((64, 1, 1, 1), 0.5), torch.zeros(64, dtype=torch.long)
    x_adv = PGD(eps=0.5, steps=1, restarts=12)(model, x, y, draw=Draw(0))
    assert (model(x_adv).argmax(1) == 1).all()


# by hand

# two pixels, two classes, w_0 = (1, -1), w_1 = (-1, 2). The gradient of cross-entropy is
# p_1 (w_1 - w_0) = p_1 (-2, 3) for y = 0 and p_0 (2, -3) for y = 1.
HAND = LinearSoftmax(torch.tensor([[1.0, -1.0], [-1.0, 2.0]]))
PIXELS = torch.tensor([[0.5, 0.95], [0.5, 0.95]]).view(2, 1, 1, 2)
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        # 0.5 - 0.1, 0.95 + 0.1 clipped to 1 | 0.5 + 0.1, 0.95 - 0.1
        (FGSM(eps=0.1), [[0.4, 1.0], [0.6, 0.85]]),
        (FGSM(eps=0.1, loss="margin"), [[0.4, 1.0], [0.6, 0.85]]),
        (FGSM(eps=0.1, step_size=0.04), [[0.46, 0.99], [0.54, 0.91]]),
        (FGSM(eps=0.1, step_size=0.5), [[0.4, 1.0], [0.6, 0.85]]),  # clipped to the ball
        (PGD(eps=0.1, step_size=0.04, steps=2, random_start=False), [[0.42, 1.0], [0.58, 0.87]]),
        (PGD(eps=0.1, step_size=0.04, steps=3, random_start=False), [[0.4, 1.0], [0.6, 0.85]]),
        # step_size is eps / 4 = 0.025
        (PGD(eps=0.1, steps=1, random_start=False), [[0.475, 0.975], [0.525, 0.925]]),
    ],
)
def test_linear_model_by_hand(attack: Attack, expected: list[list[float]]) -> None:
    x_adv = attack(HAND, PIXELS, LABELS)
    torch.testing.assert_close(x_adv.view(2, 2), torch.tensor(expected), atol=1e-6, rtol=0)


def test_random_start_is_noise_then_a_step_then_a_clip() -> None:
    u = Draw(4).noise(PIXELS)
    start = (PIXELS + 0.1 * u).clamp(max=1)
    sign = torch.tensor([[-1.0, 1.0], [1.0, -1.0]]).view(2, 1, 1, 2)
    moved = (start + 0.05 * sign).clamp(PIXELS - 0.1, PIXELS + 0.1).clamp(0, 1)
    for attack in (
        FGSM(eps=0.1, step_size=0.05, random_start=True),
        PGD(eps=0.1, step_size=0.05, steps=1),
    ):
        torch.testing.assert_close(attack(HAND, PIXELS, LABELS, draw=Draw(4)), moved)


def test_margin_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [-1.0, -1.0, -5.0]])
    # y = 0: max(1, 2) - 3 = -1; y = 1: max(3, 2) - 1 = 2; y = 0: max(-1, -5) + 1 = 0
    found = margin(logits, torch.tensor([0, 1, 0]))
    assert found.tolist() == [-1, 2, 0]


def test_margin_is_positive_exactly_where_misclassified() -> None:
    logits, y = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 5
    assert torch.equal(margin(logits, y) > 0, logits.argmax(1) != y)


def test_kl_by_hand() -> None:
    # clean p = (3/4, 1/4), attacked q = (1/2, 1/2): 3/4 log(3/2) + 1/4 log(1/2) = 0.130812
    clean = torch.tensor([[0.75, 0.25]])
    found = objective_loss("kl", torch.zeros(1, 2), torch.tensor([0]), clean)
    assert found.item() == pytest.approx(0.130812, abs=1e-6)


def test_ce_is_cross_entropy() -> None:
    logits, y = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([0, 1])
    found = objective_loss("ce", logits, y, None)
    torch.testing.assert_close(found, F.cross_entropy(logits, y, reduction="none"))


# what is drawn


def test_lists_are_drawn_from_uniformly() -> None:
    drawn = [LISTS.sample(Draw(0, step)) for step in range(900)]
    assert all(isinstance(attack, PGD) for attack in drawn)
    for name, options in (("eps", LISTS.eps), ("step_size", LISTS.step_size), ("steps", [1, 2, 3])):
        assert isinstance(options, list)
        counts = Counter(getattr(attack, name) for attack in drawn)
        assert set(counts) == set(options)
        expected = len(drawn) / len(options)
        assert all(abs(count - expected) < 0.15 * expected for count in counts.values())


def test_lists_are_drawn_independently_of_each_other() -> None:
    drawn = [LISTS.sample(Draw(0, step)).model_dump() for step in range(900)]
    pairs = Counter((attack["eps"], attack["steps"]) for attack in drawn)
    assert len(pairs) == 9
    assert min(pairs.values()) > 60  # 100 expected


def test_a_drawn_value_is_used() -> None:
    model, (x, y) = random_linear(), random_batch()
    attack = FGSM(eps=[0.02, 0.05])
    distances = {
        round((attack(model, x, y, draw=Draw(step)) - x).abs().max().item(), 3)
        for step in range(20)
    }
    assert distances == {0.02, 0.05}


def test_nothing_to_draw_is_the_attack_itself() -> None:
    attack = PGD(eps=EPS)
    assert attack.sample(Draw(0)) is attack


@pytest.mark.parametrize("world_size", [2, 3])
@every_attack
def test_ranks_share_the_attack_and_cut_the_noise(attack: Attack, world_size: int) -> None:
    model, (x, y) = random_linear(), random_batch()
    for step in range(5):
        whole = attack(model, x, y, draw=Draw(0, step, total=len(x), rows=slice(None)))
        slices = [shard(len(x), rank, world_size) for rank in range(world_size)]
        draws = [Draw(0, step, total=len(x), rows=rows) for rows in slices]
        assert (
            len({repr(attack.sample(Draw(0, step, total=16, rows=rows))) for rows in slices}) == 1
        )
        parts = [
            attack(model, x[rows], y[rows], draw=draw)
            for rows, draw in zip(slices, draws, strict=True)
        ]
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-6, rtol=0)


def test_shares_are_dealt_out_in_turn() -> None:
    """To two that stay within balls of their own; whoever has the batch's second half deals on."""
    net, (x, y) = random_linear(), random_batch(11)
    attack = Shares(of=[Clean(), FGSM(eps=0.02), FGSM(eps=0.04)], parts=[1, 2, 1])
    moved = (attack(net, x, y, draw=Draw(0)) - x).abs().amax((1, 2, 3))
    by_turn = torch.tensor([0, 0.02, 0.02, 0.04] * 3)[:11]
    inside = (x > 0.04).all(3).all(2).all(1) & (x < 0.96).all(3).all(2).all(1)
    torch.testing.assert_close(moved[inside], by_turn[inside], atol=1e-6, rtol=0)
    assert (moved <= by_turn + 1e-6).all()
    half = attack(net, x[5:], y[5:], draw=Draw(0, total=11, rows=slice(5, 11)))
    assert torch.equal(half, attack(net, x, y, draw=Draw(0, total=11, rows=slice(0, 11)))[5:])
    fair = Shares(of=[Clean(), FGSM(eps=0.02)])(net, x, y, draw=Draw(0))
    assert torch.equal(fair[::2], x[::2])


def test_mix_draws_by_its_weights() -> None:
    mix = Mix(of=[Clean(), FGSM(), PGD()], weights=[1, 0, 3])
    counts = Counter(type(mix.sample(Draw(0, step))) for step in range(1000))
    assert counts[FGSM] == 0
    assert abs(counts[PGD] - 750) < 60
    assert counts[Clean] + counts[PGD] == 1000


def test_mix_without_weights_is_uniform() -> None:
    mix = Mix(of=[Clean(), FGSM(), PGD()])
    counts = Counter(type(mix.sample(Draw(0, step))) for step in range(900))
    assert all(abs(counts[kind] - 300) < 60 for kind in (Clean, FGSM, PGD))


def test_mix_draws_the_parameters_of_what_it_draws() -> None:
    mix = Mix(of=[Mix(of=[LISTS])])
    drawn = [mix.sample(Draw(0, step)) for step in range(20)]
    assert all(isinstance(attack, PGD) and isinstance(attack.eps, float) for attack in drawn)
    assert len({repr(attack) for attack in drawn}) > 5


# the configuration


def parse(value: object) -> Attack:
    attack: Attack = TypeAdapter(AttackConfig).validate_python(value)
    return attack


def test_eps_may_be_a_ratio() -> None:
    assert parse({"kind": "pgd", "eps": "8/255"}) == PGD(eps=8 / 255)
    assert parse({"kind": "fgsm", "eps": ["2/255", "4/255"]}) == FGSM(eps=[2 / 255, 4 / 255])


@pytest.mark.parametrize("attack", TABLE.values(), ids=TABLE.keys())
def test_survives_a_round_trip_through_json(attack: Attack) -> None:
    adapter: TypeAdapter[Attack] = TypeAdapter(AttackConfig)
    assert adapter.validate_json(adapter.dump_json(attack)) == attack


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"kind": "mix", "of": [{"kind": "clean"}], "weights": [1, 1]}, "2 weights for 1 attacks"),
        ({"kind": "mix", "of": [{"kind": "clean"}], "weights": [0]}, "weights must not all be 0"),
        ({"kind": "mix", "of": [{"kind": "clean"}], "weights": [-1]}, "greater than or equal to 0"),
        ({"kind": "mix", "of": [{"kind": "clean"}], "weights": [float("inf")]}, "finite"),
        ({"kind": "mix", "of": []}, "at least 1 item"),
        ({"kind": "shares", "of": []}, "at least 1 item"),
        ({"kind": "shares", "of": [{"kind": "clean"}], "parts": [1, 1]}, "2 parts for 1 attacks"),
        ({"kind": "shares", "of": [{"kind": "clean"}], "parts": [0]}, "greater than or equal to 1"),
        (
            {"kind": "mix", "of": [{"kind": "cw"}]},
            "'clean', 'fgsm', 'nfgsm', 'pgd', 'shares', 'mix'",
        ),
        (
            {"kind": "pgd", "epsilon": 0.1},
            "unknown key epsilon .allowed: kind, norm, eps, step_size",
        ),
        ({"kind": "pgd", "eps": 8}, "must be at most 1 in linf"),
        ({"kind": "pgd", "eps": -0.1}, "greater than or equal to 0"),
        ({"kind": "pgd", "eps": "8/0"}, "not a ratio"),
        ({"kind": "pgd", "eps": float("nan")}, "greater than or equal to 0"),
        ({"kind": "pgd", "eps": []}, "at least 1 item"),
        ({"kind": "pgd", "steps": 0}, "greater than 0"),
        ({"kind": "pgd", "steps": 1.5}, "integer"),
        ({"kind": "pgd", "restarts": 0}, "greater than 0"),
        ({"kind": "pgd", "loss": "dlr"}, "'ce', 'margin' or 'kl'"),
        ({"kind": "fgsm", "step_size": "2/256/1"}, "valid number"),
    ],
)
def test_refuses(value: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        parse(value)


def test_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        PGD().eps = 1  # type: ignore[misc]


def test_nfgsm_by_its_formula() -> None:
    """clip(x + eta + eps * sign(gradient at x + eta), 0, 1), eta uniform in +-noise * eps."""
    torch.manual_seed(0)
    weight, x, y = torch.randn(3, 12), torch.rand(5, 3, 2, 2), torch.tensor([0, 1, 2, 0, 1])

    def model(images: Tensor) -> Tensor:
        return images.flatten(1) @ weight.T

    eps, noise = 0.05, 1.5
    made = NFGSM(eps=eps, noise=noise)(model, x, y, draw=Draw(3))
    start = (x + noise * eps * Draw(3).noise(x)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(start), y, reduction="sum"), start)
    expected = (start.detach() + eps * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close(made, expected)
    distance = (made - x).abs()
    assert eps < distance.max() <= (1 + noise) * eps + 1e-6
