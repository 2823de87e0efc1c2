"""The standard attacks of the protocol (`docs/protocol.md`), a chunk of images at a time.

FGSM and PGD are run on every image that is right; PGD-50 and AutoAttack on those that are left,
since an image that is broken stays broken. Draws are those of the whole chunk, cut to the images
attacked: leaving an image out changes no other's verdict.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fmoe.attacks import Objective
from fmoe.attacks.threat import Linf, Threat
from fmoe.evaluation import looks
from fmoe.evaluation.chunk import (
    ATTACKED,
    BY,
    CLEAN,
    PREDICTION,
    WEIGHTS,
    Chunk,
    Columns,
    assert_within,
    right,
    survivors,
    verdict,
)
from fmoe.evaluation.guarded import Guarded
from fmoe.evaluation.iterated import ascending, one_after_another, until_broken
from fmoe.evaluation.outputs import NONE, Logarithm, classes
from fmoe.evaluation.witness import Left, Odd
from fmoe.models.mixture import Mixture
from fmoe.numerics.precision import at_least_float32

if TYPE_CHECKING:
    from pyautoattack import AutoAttack

RESTARTS = 5
SQUARE = "square"
PARTS = ("apgd-ce", "apgd-t", "fab-t", SQUARE)
"""AutoAttack's, in its order (arXiv 2003.01690)."""
LEAST_FOR_DLR = 4
"""Classes: the targeted DLR loss divides by the distance to the third and fourth largest logit."""
TARGETS = 9
"""Classes that its targeted parts try an image, the likeliest ones first."""

FEW = "with only "
"""How the library warns of too few classes for its losses; see `_fit`."""

Given = tuple[Columns, list[str]]
"""A stage's columns, and the flags that a library raised."""


def fgsm(model: nn.Module, chunk: Chunk, before: Columns, threat: Threat) -> Given:
    """One step of eps from the image itself."""
    start, run = right(before, chunk.y), ascending(model, chunk.y)
    attacked = until_broken(
        run, chunk, start, "fgsm", threat=threat, steps=1, step_size=threat.eps, random_start=False
    )
    return verdict("fgsm", start, attacked.broken, attacked.prediction), []


def pgd(model: nn.Module, chunk: Chunk, before: Columns, threat: Threat) -> Given:
    """20 steps of eps/4, random start; for a mixture the gate's weights under attack, too."""
    start = right(before, chunk.y)
    attacked = until_broken(ascending(model, chunk.y), chunk, start, "pgd", threat=threat)
    columns = verdict("pgd", start, attacked.broken, attacked.prediction)
    if isinstance(model, Mixture):
        with torch.no_grad():
            columns[WEIGHTS + "pgd"] = model.gate_weights(attacked.x)
    return columns, []


def pgd50(model: nn.Module, chunk: Chunk, before: Columns, threat: Threat) -> Given:
    """50 steps of eps/4, five random starts with the cross-entropy and five with the margin."""
    losses: tuple[Objective, ...] = ("ce", "margin")
    runs = [
        ((loss, restart), ascending(model, chunk.y, loss))
        for loss in losses
        for restart in range(RESTARTS)
    ]
    start = survivors(before, chunk.y)
    return one_after_another(runs, chunk, start, "pgd50", threat=threat, steps=50), []


class _Collect(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = " ".join(record.getMessage().split())
        if not message.startswith(FEW):
            self.messages.append(message)


@contextmanager
def _contained(device: torch.device) -> Iterator[list[str]]:
    """Collects the library's warnings; what it changes for the whole process is put back.

    It seeds torch's generator, ends tracing (debuggers, coverage), and counts its warnings for as
    long as the process lives: a second model would inherit the first one's.
    """
    from pyautoattack import checks

    logger, collect = logging.getLogger("auto-attack"), _Collect()
    trace, propagate = sys.gettrace(), logger.propagate
    for name in checks.funcs:
        checks.funcs[name] = 0
    logger.addHandler(collect)
    logger.propagate = False
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield collect.messages
    finally:
        sys.settrace(trace)
        logger.removeHandler(collect)
        logger.propagate = propagate


def autoattack(part: str, model: nn.Module, chunk: Chunk, before: Columns, threat: Threat) -> Given:
    """One of the standard version's four parts; the library's warnings become flags.

    They are run one by one on what is left, as the library does itself. Columns are of the whole as
    far as it has come; `by.autoattack` says which part broke an image.
    """
    name, alive, flags = "autoattack", survivors(before, chunk.y), []
    start, said, by = (
        before[column].to(alive.device) if column in before else new
        for column, new in (
            (ATTACKED + name, alive),
            (PREDICTION + name, chunk.y),
            (BY + name, torch.full_like(chunk.y, -1, dtype=torch.int8)),
        )
    )
    rows = alive.nonzero()[:, 0]
    if len(rows):
        told, warnings = _asked(part, model, chunk, rows, threat)
        flags = [f"autoattack: {message}" for message in warnings]
        said = said.index_put((rows,), told)
        by = by.masked_fill(alive & (said != chunk.y), PARTS.index(part))
    broken = start & (said != chunk.y)
    return verdict(name, start, broken, said) | {BY + name: by}, flags


def _asked(
    part: str, model: nn.Module, chunk: Chunk, rows: Tensor, threat: Threat
) -> tuple[Tensor, list[str]]:
    """pyautoattack's part on these images: their classes under it, and the library's warnings."""
    from pyautoattack import AutoAttack

    from fmoe.fast.projection import without_sorting
    from fmoe.fast.square import in_windows

    x, y = chunk.x[rows].contiguous(), chunk.y[rows]
    attacked: Callable[[Tensor], Tensor] = model
    folded = chunk.confirm is not None
    box = isinstance(threat, Linf)  # what is quick is so for boxes
    if chunk.confirm is not None:
        with torch.no_grad():
            unlike = classes(model(x)) != y
        if unlike.any():  # the library would not attack what its network has wrong
            attacked, folded = chunk.confirm, False
    guarded = Guarded(attacked, x, threat, chunk.witness, rows)
    on_cpu = x.device.type == "cpu"  # not measured on GPUs, which sort fast and wait for no answer
    quick = without_sorting() if box and folded and on_cpu else nullcontext()
    with _contained(x.device) as warnings, quick:
        seed = int(chunk.key[0])
        library = AutoAttack(
            guarded,
            norm=threat.library,
            eps=threat.eps,
            seed=seed,
            device=x.device,
            version="standard",
        )
        library.attacks_to_run = [part]
        _fit(library, len(attacked(x[:1])[0]))
        if isinstance(attacked, Logarithm):  # its checks are of what the model itself gives
            library.model = Guarded(attacked.model, x, threat, chunk.witness, rows)
        if box and folded and part == SQUARE:
            library.square = in_windows(library.square, model, x)
        x_adv, _ = library.run_standard_evaluation(x, y, batch_size=len(y))
    assert_within(x_adv, x, threat)
    with torch.no_grad():
        outputs = at_least_float32(attacked(x_adv))
    said = chunk.confirmed(classes(outputs), x_adv, y).masked_fill(guarded.lost, NONE)
    if chunk.witness is not None:
        chunk.witness.see(Odd.NON_FINITE, rows[said == NONE])
        chunk.witness.left(Left(rows, x_adv, outputs))
    return said, warnings


def _fit(library: AutoAttack, classes: int) -> None:
    """Sets what the library assumes of ten classes. For two and three there is no targeted DLR loss
    and its part ascends the target's logit minus the label's; the sign of the gradient is what
    counts, so that the loss's scale does not."""
    targeted = library.apgd_targeted
    library.fab.n_target_classes = targeted.n_target_classes = min(TARGETS, classes - 1)
    if classes < LEAST_FOR_DLR:
        targeted.dlr_loss_targeted = lambda z, y: (
            z.gather(1, targeted.y_target[:, None]) - z.gather(1, y[:, None])
        )[:, 0]


def clean(model: nn.Module, chunk: Chunk, _before: Columns, threat: Threat) -> Given:
    """Predictions, and what the sanity checks need that costs next to nothing.

    `steady`: a second forward pass gave the same; `gradient`: see `looks.gradients`;
    `margin`: whether it is right after `looks.margin_step`;
    `standardised`, `bytes`: predictions for images that are scaled as a model that normalises
    outside itself would want them; `classes`: how many there are; `confidence`: the
    largest probability; `probabilities`: whether the output is some.
    """
    x, y = chunk.x, chunk.y
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True).clamp_min(1e-6)
    with torch.no_grad():
        first, second = model(x), model(x)
        scaled = {"standardised": (x - mean) / std, "bytes": x * 255}
        others = {name: classes(model(other)) for name, other in scaled.items()}
    said, step = classes(first), looks.margin_step(model, chunk, threat)
    gradient, noisy = looks.gradients(model, chunk, threat)
    columns = {
        CLEAN: said,
        "steady": torch.isclose(first, second, rtol=1e-4, atol=1e-5, equal_nan=True).all(1),
        "gradient": gradient,
        "margin": classes(step[1]) == y,
        "confidence": at_least_float32(first).softmax(1).amax(1).nan_to_num(1).float(),
        "classes": torch.full_like(y, first.shape[1], dtype=torch.int32),
        "probabilities": torch.full_like(y, isinstance(model, Logarithm), dtype=torch.bool),
        **{f"scaled.{name}": other for name, other in others.items()},
    }
    if chunk.witness is not None:
        chunk.witness.see(Odd.NON_FINITE, said == NONE)
        everyone = torch.arange(len(y), device=y.device)
        # away from the image first: a copy that was not asked about it cannot remember it
        chunk.witness.left(noisy, Left(everyone, *step), Left(everyone, x, at_least_float32(first)))
    if isinstance(model, Mixture):
        with torch.no_grad():
            columns[WEIGHTS + "clean"] = model.gate_weights(x)
    return columns, []
