"""Bytes that a worker sends in a step of the joint phase, and the collectives that they go by.

All-reduces send 2 (N-1)/N of a tensor (arXiv 1802.05799), gathers N-1 times their own part.
"""

from __future__ import annotations

from dataclasses import dataclass

from fmoe.config import Config
from fmoe.data.facts import Facts
from fmoe.planning.passes import Passes
from fmoe.planning.totals import Totals
from fmoe.planning.work import Parts, scaled

FLOAT = 4


@dataclass(frozen=True)
class Traffic(Totals):
    bytes: float = 0.0
    messages: float = 0.0

    def seconds(self, speed: float, latency: float) -> float:
        """speed: bytes a second."""
        return self.bytes / speed + self.messages * latency


def reduced(size: float, workers: int) -> Traffic:
    return Traffic(2 * (workers - 1) / workers * size, 1) if workers > 1 else Traffic()


def of_step(
    config: Config,
    facts: Facts,
    parts: Parts,
    groups: int,
    peers: int,
    crafting: Passes,
    loss: float,
    side: int | None = None,
) -> Traffic:
    """groups share the images, and peers of a group the experts. loss: forward passes of it. side:
    of images, where they are scaled down."""
    held = parts.held(peers)
    if peers == 1:
        return reduced(FLOAT * held.parameters, groups)
    images = config.joint.batch_size / groups
    channels, height, width = scaled(facts.shape, side)
    pixel = 2 if config.coarse_gradients else FLOAT
    own = -(-len(parts.experts) // peers)  # padded to the most that one holds
    logits = Traffic(images * own * len(facts.classes) * FLOAT * (peers - 1), 1)
    gradients = reduced(images * channels * height * width * pixel, peers)
    experts = reduced(FLOAT * (held.parameters - parts.shared.parameters), groups)
    shared = reduced(FLOAT * parts.shared.parameters, groups * peers)
    passes = crafting.gradients + crafting.forwards + loss
    return logits.times(passes) + gradients.times(crafting.gradients) + experts + shared
