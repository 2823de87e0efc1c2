"""Running the protocol: stages over chunks of images, each on what the ones before it have left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fmoe.attacks import eval_mode
from fmoe.attacks.threat import threat_model
from fmoe.data import Split
from fmoe.evaluation import inputs, looks, mixture_suite
from fmoe.evaluation.chunk import BROKEN, Chunk, Columns, StageResult, share, so_far
from fmoe.evaluation.copies import NotCopied, copied
from fmoe.evaluation.flags import PERCENT_POINT
from fmoe.evaluation.outputs import Logarithm, are_probabilities, checked
from fmoe.evaluation.result import Evaluation
from fmoe.evaluation.settings import Settings
from fmoe.evaluation.stages import CLEAN, attack_of, of_stage, run_of, wanted
from fmoe.evaluation.standard import Given
from fmoe.evaluation.witness import ODD, Odd, Witness
from fmoe.fast.folding import folded
from fmoe.models.mixture import Mixture
from fmoe.numerics.precision import exact


def plan(model: nn.Module, settings: Settings) -> tuple[list[str], dict[str, str]]:
    """The stages to run, in order, and the attacks that are skipped with the reason."""
    why, attacks = mixture_suite.why_not(model), wanted(settings.attacks)
    skipped = {attack.name: why for attack in attacks if attack.of_mixtures and why}
    run = [attack for attack in attacks if attack.name not in skipped]
    return [CLEAN, *(stage for attack in run for stage in attack.stages)], skipped


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No gradients of the parameters: FAB's would be of all, and stay in the caller's module."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def judge(
    model: nn.Module, part: Split, start: int, name: str, before: Columns, settings: Settings
) -> StageResult:
    """One stage on one chunk; start: the first image's place in the data set.

    before: the columns of the chunk's earlier stages.
    """
    begin = time.perf_counter()
    flags: list[str] = []
    subject, fresh = model, None
    try:
        subject, fresh = copied(model), copied(model)
    except NotCopied as why:
        flags.append(f"not-copied: a look for what the model keeps needs a copy of it ({why})")
    second = subject if fresh is None else fresh
    with eval_mode(subject), frozen(subject), eval_mode(second), exact():
        columns, raised = _judged(subject, fresh, part, start, name, before, settings)
    on_cpu = {key: column.detach().cpu() for key, column in columns.items()}
    return StageResult(on_cpu, [*flags, *raised], time.perf_counter() - begin)


def _judged(
    subject: nn.Module,
    fresh: nn.Module | None,
    part: Split,
    start: int,
    name: str,
    before: Columns,
    settings: Settings,
) -> Given:
    """The stage on `subject`, and the looks after it on that and on `fresh`, a copy of it that was
    never asked anything."""
    key, attacked, confirm = (settings.seed, start), subject, None
    if not (fresh is None or isinstance(subject, Mixture)) and _remembers(before):
        attacked = looks.Forgetful(subject)
    elif settings.fast and name != CLEAN:
        attacked, confirm = stand_in(subject, part)
    witness = Witness(len(part), part.labels.device)
    chunk = Chunk(part.pixels(), part.labels, key, confirm, witness)
    known = int(before["classes"][0]) if "classes" in before else None
    with checked(subject, attacked, *([] if fresh is None else [fresh]), known=known):
        first = looks.ask(attacked, chunk.x)
        if are_probabilities(first).all():
            attacked, first = Logarithm(attacked), Logarithm.of(first)
            fresh = None if fresh is None else Logarithm(fresh)
            if confirm is not None:
                chunk = replace(chunk, confirm=Logarithm(confirm))
        columns, raised = run_of(name)(attacked, chunk, before, settings.threat)
        second = looks.after(attacked, fresh, chunk, first, witness)
    if second is not None:
        columns = looks.overrule(columns, attack_of(name), chunk, second)
    _forget_flat(columns, name, witness)
    return columns | {ODD + name: witness.odd}, raised


def _remembers(before: Columns) -> bool:
    """Whether the look at clean images has found state."""
    seen = before.get(ODD + CLEAN)
    return seen is not None and share((seen & int(Odd.STATEFUL)) != 0) > PERCENT_POINT


def _forget_flat(columns: Columns, name: str, witness: Witness) -> None:
    """A gradient of 0 tells something where it is the model's own, and the image withstood."""
    attack = of_stage(name)
    if attack is None:
        return
    if not attack.white_box:
        witness.forget(Odd.FLAT, slice(None))
        return
    broken = columns.get(BROKEN + attack.name)
    witness.forget(Odd.FLAT, columns["step"] >= 0 if broken is None else broken)


def stand_in(model: nn.Module, part: Split) -> tuple[nn.Module, nn.Module | None]:
    """(what is attacked, what is to break): the folded copy and the model, or the model and None
    where the copy is not the same function, as can be with a module of unusual construction."""
    copied, x = folded(model), part.pixels()
    with torch.no_grad(), eval_mode(model), exact():
        same = torch.isclose(copied(x), model(x), rtol=1e-3, atol=1e-3).all()
    return (copied, model) if same else (model, None)


def summarise(
    parts: Sequence[Mapping[str, StageResult]],
    labels: Tensor,
    settings: Settings,
    skipped: dict[str, str],
    seconds: float,
) -> Evaluation:
    """All chunks' findings (stage to found), in the order of the images."""
    stages = list(parts[0])
    chunks = [so_far(part) for part in parts]
    columns = {key: torch.cat([chunk[key] for chunk in chunks]) for key in chunks[0]}
    raised = sorted({flag for part in parts for stage in part.values() for flag in stage.flags})
    spent = dict.fromkeys(map(attack_of, stages), 0.0)
    for part in parts:
        for stage, done in part.items():
            spent[attack_of(stage)] += done.seconds
    return Evaluation(settings, labels.cpu(), columns, raised, skipped, spent, seconds)


def evaluate(
    model: nn.Module,
    images: Tensor | NDArray[Any],
    labels: Tensor | NDArray[Any] | Sequence[int],
    *,
    attacks: Sequence[str] = ("fgsm", "pgd", "mixture", "sweeps"),
    eps: float = 8 / 255,
    norm: str = "linf",
    batch_size: int = 250,
    seed: int = 0,
    selected_on: str | None = None,
    device: str | torch.device = "cpu",
    fast: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Judges any classifier: images uint8 [N,C,H,W] and labels [N], classes from 0, as tensors or
    NumPy arrays of integers (labels as a list of ints, too).

    `model` maps float images in [0,1] to logits or log-probabilities [B,K]; it is asked in eval
    mode, and copies of it are: it stays as it is. eps is in pixels of [0,1], in a norm of
    `fmoe.attacks.threat`. The mixture's attacks need a `fmoe.models.mixture.Mixture`, and are
    listed in `skipped` for another model. selected_on: the split by which the model was chosen,
    `validation` or `test`.
    fast: attack a folded copy, and count what breaks the model itself as well.
    `progress(done, total)` counts images. Raises `UserError`, which names the argument, before
    anything is judged; for a model whose output is not one tensor [B,K] as well.
    """
    split = inputs.split(images, labels)
    settings = Settings(
        inputs.names(attacks),
        threat_model(norm, inputs.number(eps)),
        inputs.number(batch_size),
        inputs.number(seed),
        selected_on=selected_on,  # type: ignore[arg-type]
        fast=fast,
    )  # fmt: skip
    begin = time.perf_counter()
    split = split.to(inputs.place(device))
    model = inputs.classifier(model, split)
    stages, skipped = plan(model, settings)
    parts, done = [], 0
    for start in range(0, len(split), settings.batch_size):
        part = split[start : start + settings.batch_size]
        results: dict[str, StageResult] = {}
        for name in stages:
            results[name] = judge(model, part, start, name, so_far(results), settings)
            done += len(part)
            if progress:
                progress(done // len(stages), len(split))
        parts.append(results)
    return summarise(parts, split.labels, settings, skipped, time.perf_counter() - begin)
