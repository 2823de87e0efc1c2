"""The protocol over Ray tasks, a stage of a chunk each: the same verdicts as in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fmoe.data import Split
from fmoe.evaluation import Evaluation, Settings, StageResult, judge, plan, summarise
from fmoe.evaluation.chunk import Columns, so_far
from fmoe.evaluation.kept import Kept
from fmoe.evaluation.subject import Subject
from fmoe.on_ray.session import Resources
from fmoe.on_ray.tasks import own_error

IN_NUMPY = (torch.float16, torch.float32, torch.float64)


def stage(
    state: Mapping[str, NDArray[Any]],
    subject: Subject,
    images: NDArray[Any],
    labels: NDArray[Any],
    start: int,
    name: str,
    before: Mapping[str, NDArray[Any]],
    settings: Settings,
    resources: Resources,
) -> StageResult:
    """In a worker. state: of `sent`."""
    device = resources.device()
    model = received(subject.build(), state)
    part = Split(torch.from_numpy(images.copy()), torch.from_numpy(labels.copy()))
    columns: Columns = {key: torch.from_numpy(array.copy()) for key, array in before.items()}
    return judge(model.to(device), part.to(device), start, name, columns, settings)


def sent(model: nn.Module) -> dict[str, NDArray[Any]]:
    """The model's tensors as arrays, which workers of a machine share."""

    def array(tensor: Tensor) -> NDArray[Any]:
        tensor = tensor.detach().cpu()
        known = not tensor.is_floating_point() or tensor.dtype in IN_NUMPY
        # a float32 holds any of the others exactly
        return (tensor.clone() if known else tensor.float()).numpy()

    state = model.state_dict().items()
    return {name: array(value) for name, value in state if isinstance(value, Tensor)}


def received(model: nn.Module, state: Mapping[str, NDArray[Any]]) -> nn.Module:
    """The model with these tensors; what else its state has stays as it was built."""
    own = {name: v for name, v in model.state_dict().items() if not isinstance(v, Tensor)}
    tensors = {name: torch.from_numpy(array.copy()) for name, array in state.items()}
    model.load_state_dict({**own, **tensors})
    return model


def evaluate(
    model: nn.Module,
    subject: Subject,
    split: Split,
    settings: Settings,
    *,
    resources: Resources,
    kept: Kept | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Judges all images of `split`; what is `kept` of an earlier try is not done again.

    subject: how a worker makes a module of `model`'s kind, which it then gives `model`'s tensors.
    `progress(done, total)` counts images, an image's stages as parts of one.
    """
    begin = time.perf_counter()
    names, skipped = plan(model, settings)
    state = ray.put(sent(model))
    task = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=3)(stage)
    starts = range(0, len(split), settings.batch_size)
    parts: list[dict[str, StageResult]] = [{} for _ in starts]
    running: dict[Any, int] = {}
    done = 0

    def count(place: int) -> None:
        nonlocal done
        done += len(split[starts[place] : starts[place] + settings.batch_size])
        if progress:
            progress(done // len(names), len(split))

    def go_on(place: int) -> None:
        """Takes what is kept, then starts the chunk's next stage."""
        results = parts[place]
        part = split[starts[place] : starts[place] + settings.batch_size]
        for name in names[len(results) :]:
            known = kept.get(place, name, len(part)) if kept else None
            if known is None:
                before = {key: column.numpy() for key, column in so_far(results).items()}
                arrays = part.images.numpy(), part.labels.numpy()
                given = (subject, *arrays, starts[place], name, before, settings, resources)
                running[task.remote(state, *given)] = place
                return
            results[name] = known
            count(place)

    for place in range(len(parts)):
        go_on(place)
    with own_error():
        while running:
            (ready,), _ = ray.wait(list(running))
            place = running.pop(ready)
            name = names[len(parts[place])]
            parts[place][name] = ray.get(ready)
            if kept:
                kept.put(place, name, parts[place][name])
            count(place)
            go_on(place)
    return summarise(parts, split.labels, settings, skipped, time.perf_counter() - begin)
