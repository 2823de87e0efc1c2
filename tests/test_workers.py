from __future__ import annotations

import pytest

from fmoe.config import Parallel
from fmoe.errors import UserError
from fmoe.on_ray.workers import Workers


@pytest.mark.parametrize(
    ("text", "workers"), [("1", (1, 1)), ("8", (8, 8)), ("1..4", (1, 4)), ("2..2", (2, 2))]
)
def test_parse(text: str, workers: tuple[int, int]) -> None:
    parsed = Workers.parse(text)
    assert (parsed.least, parsed.most) == workers
    assert Workers.parse(str(parsed)) == parsed
    assert parsed.elastic == (workers[0] < workers[1])


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "4..1", "0..2", "1..", "..3", "1.5", "two", "1...2"]
)
def test_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected"):
        Workers.parse(text)


def given(text: str | None, **parallel: int) -> tuple[int, int]:
    asked = None if text is None else Workers.parse(text)
    found = Workers.of(asked, Parallel(**parallel))
    return found.least, found.most


def test_as_many_as_the_recipe_shares_out() -> None:
    assert given(None) == (1, 1)
    assert given(None, expert=3) == (3, 3)
    assert given(None, data=2, expert=3) == (6, 6)
    assert given("6", expert=3) == given("6", data=2, expert=3) == (6, 6)
    assert given("1..4", expert=2) == (1, 4)
    assert Workers.of(None, "auto") == Workers(1, 1)
    assert Workers.of(Workers(1, 4), "auto") == Workers(1, 4)


@pytest.mark.parametrize(
    ("text", "parallel", "why"),
    [
        ("3", {"expert": 2}, "no multiple of parallel.expert: 2"),
        ("1..3", {"expert": 2}, "no multiple of parallel.expert: 2"),
        ("4", {"data": 1, "expert": 2}, "are 2; leave out one"),
    ],
)
def test_numbers_that_the_recipe_does_not_go_with(
    text: str, parallel: dict[str, int], why: str
) -> None:
    with pytest.raises(UserError, match=why):
        given(text, **parallel)
