from __future__ import annotations

import pytest

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
