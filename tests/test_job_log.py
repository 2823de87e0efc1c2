"""A job's output without Ray's own lines, wherever the chunks that come of it end."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from fmoe.on_ray.job_log import of_the_command

LOG = """\
2026-12-01 02:28:22,974\tINFO job_manager.py:581 -- Runtime env is setting up.
Running entrypoint for job fmoe-train-525339d4: python -m pipelines.in_job train digits
expert benign-0  epoch 1  loss 2.513  val clean 10.9%  robust 0.7%  0 s
2026-12-01 an epoch's line of ours that begins with a day
(autoscaler +5s) Adding 1 node(s) of type gpu.
fmoe: no line end"""
OURS = "".join(LOG.splitlines(keepends=True)[2:])


@given(st.lists(st.integers(0, len(LOG)), max_size=30))
@settings(max_examples=200, deadline=None)
def test_rays_own_lines_are_left_out(places: list[int]) -> None:
    cuts = [0, *sorted(places), len(LOG)]
    chunks = [LOG[start:end] for start, end in itertools.pairwise(cuts)]
    assert "".join(of_the_command(chunks)) == OURS


def test_a_line_is_shown_as_soon_as_it_is_whole() -> None:
    shown = of_the_command(iter(["joint  epo", "ch 1\njoi", "nt  epoch 2\n"]))
    assert next(shown) == "joint  epoch 1\n"
    assert list(shown) == ["joint  epoch 2\n"]
