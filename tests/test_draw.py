"""Draws depend on their key alone; the ranks' rows together are the whole batch's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmoe.numerics.draw import Draw, shard

BATCHES = {"total": st.integers(1, 50), "world_size": st.integers(1, 12)}


@settings(deadline=None)
@given(total=st.integers(0, 10_000), world_size=st.integers(1, 64))
def test_shards_partition_the_batch_and_differ_by_at_most_one(total: int, world_size: int) -> None:
    shares = [range(total)[shard(total, rank, world_size)] for rank in range(world_size)]
    assert [row for share in shares for row in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_shard_by_hand() -> None:
    # 10 rows for 4 ranks: 10 = 4 * 2 + 2, so the first two ranks have 3 rows, the others 2.
    cuts = [slice(0, 3), slice(3, 6), slice(6, 8), slice(8, 10)]
    assert [shard(10, rank, 4) for rank in range(4)] == cuts


@settings(deadline=None, max_examples=50)
@given(**BATCHES)
def test_ranks_noise_concatenates_to_the_whole_batchs(total: int, world_size: int) -> None:
    whole = Draw(7, "noise").noise(torch.empty(total, 2, 3))
    parts = []
    for rank in range(world_size):
        rows = shard(total, rank, world_size)
        like = torch.empty(len(range(total)[rows]), 2, 3)
        parts.append(Draw(7, "noise", total=total, rows=rows).noise(like))
        assert parts[-1].shape == like.shape
    assert torch.equal(torch.cat(parts), whole)


@settings(deadline=None, max_examples=50)
@given(**BATCHES)
def test_ranks_integers_concatenate_to_the_whole_batchs(total: int, world_size: int) -> None:
    whole = Draw(7, "crop").integers(9, torch.empty(total))
    parts = []
    for rank in range(world_size):
        rows = shard(total, rank, world_size)
        like = torch.empty(len(range(total)[rows]))
        parts.append(Draw(7, "crop", total=total, rows=rows).integers(9, like))
    assert torch.equal(torch.cat(parts), whole)


def test_ranks_pick_alike() -> None:
    draws = [Draw(3, "attack", 5, total=8, rows=shard(8, rank, 4)) for rank in range(4)]
    for _ in range(20):
        assert len({draw.pick(range(1000)) for draw in draws}) == 1


def test_same_key_same_numbers() -> None:
    like = torch.empty(4, 1, 2, 2)
    one, two = Draw(1, "step", 9), Draw(1, "step", 9)
    for _ in range(3):  # the second and third draws of a stream, too
        assert torch.equal(one.noise(like), two.noise(like))
        assert torch.equal(one.integers(100, like), two.integers(100, like))
        assert one.pick(range(1000)) == two.pick(range(1000))


def test_successive_draws_differ() -> None:
    draw, like = Draw(0), torch.empty(64)
    assert not torch.equal(draw.noise(like), draw.noise(like))


@pytest.mark.parametrize("key", [(1, "step", 8), (2, "step", 9), (1, "stop", 9), ("1", "step", 9)])
def test_another_key_gives_other_numbers(key: tuple[int | str, ...]) -> None:
    like = torch.empty(64)
    assert not torch.equal(Draw(*key).noise(like), Draw(1, "step", 9).noise(like))


def test_golden_numbers_of_a_key() -> None:
    # Old runs can only be repeated while a key keeps its numbers. From
    # int(sha256("(0, 'a')").hexdigest()[:16], 16) >> 1 and torch's CPU generator.
    draw = Draw(0, "a")
    assert draw.seed == 739273521946992771
    assert draw.integers(10, torch.empty(8)).tolist() == [8, 0, 2, 6, 4, 5, 8, 4]


def test_picks_do_not_shift_the_noise() -> None:
    like, picked = torch.empty(8), Draw(4)
    picked.pick("abc")
    assert torch.equal(picked.noise(like), Draw(4).noise(like))


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), zero=st.integers(0, 3))
def test_pick_never_takes_weight_zero(seed: int, zero: int) -> None:
    weights = [0.0 if i == zero else 1.0 for i in range(4)]
    assert Draw(seed).pick(range(4), weights) != zero


def test_pick_follows_the_weights() -> None:
    draw = Draw(0, "weights")
    picks = [draw.pick("ab", [1, 3]) for _ in range(4000)]
    # b: 3/4 of 4000 = 3000, standard deviation sqrt(4000 * 3/16) = 27; within five of them
    assert abs(picks.count("b") - 3000) < 5 * 27


def test_noise_is_uniform_in_minus_one_to_one() -> None:
    noise = Draw(0, "range").noise(torch.empty(10_000))
    assert noise.min() >= -1
    assert noise.max() <= 1
    # mean 0 with standard deviation sqrt(1/3)/100 = 0.006; variance 1/3
    assert abs(noise.mean().item()) < 0.03
    assert noise.var().item() == pytest.approx(1 / 3, abs=0.02)


def test_integers_cover_their_range() -> None:
    drawn = Draw(0, "range").integers(5, torch.empty(500))
    assert set(drawn.tolist()) == {0, 1, 2, 3, 4}


def test_torchs_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw = Draw(1)
    draw.noise(torch.empty(4))
    draw.integers(3, torch.empty(4))
    draw.pick("ab")
    assert torch.equal(torch.get_rng_state(), before)


def test_from_global_follows_manual_seed() -> None:
    torch.manual_seed(5)
    one = Draw.from_global()
    following = Draw.from_global()
    torch.manual_seed(5)
    assert Draw.from_global().seed == one.seed
    assert following.seed != one.seed
