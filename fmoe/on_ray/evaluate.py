"""The protocol over Ray tasks, a stage of a chunk each: the same verdicts as in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
import torch
from torch import nn

from fmoe import assembly
from fmoe.checkpoint import copy_state
from fmoe.config import Config
from fmoe.data import Split
from fmoe.evaluation import Evaluation, Found, Settings, judge, plan, summarise
from fmoe.evaluation.chunk import Columns, so_far
from fmoe.evaluation.kept import Kept
from fmoe.facts import Facts
from fmoe.on_ray.session import Resources
from fmoe.on_ray.tasks import own_error


@ray.remote  # type: ignore[untyped-decorator]
def stage(
    state: dict[str, Any],
    tree: dict[str, Any],
    facts: Facts,
    images: Any,
    labels: Any,
    start: int,
    name: str,
    before: dict[str, Any],
    settings: Settings,
    resources: Resources,
) -> Found:
    device = resources.device()
    model = assembly.mixture(Config.model_validate(tree), facts)
    model.load_state_dict({key: torch.from_numpy(array.copy()) for key, array in state.items()})
    part = Split(torch.from_numpy(images.copy()), torch.from_numpy(labels.copy()))
    columns: Columns = {key: torch.from_numpy(array.copy()) for key, array in before.items()}
    return judge(model.to(device), part.to(device), start, name, columns, settings)


def evaluate(
    model: nn.Module,
    config: Config,
    facts: Facts,
    split: Split,
    settings: Settings,
    *,
    resources: Resources,
    kept: Kept | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Judges all images of `split`; what is `kept` of an earlier try is not done again.

    facts: by which `model` was built; workers build it again from these and `config`.
    `progress(done, total)` counts images, an image's stages as parts of one.
    """
    begin = time.perf_counter()
    names, skipped = plan(model, settings)
    state = ray.put({name: tensor.numpy() for name, tensor in copy_state(model).items()})
    task = stage.options(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=3)
    starts = range(0, len(split), settings.batch_size)
    parts: list[dict[str, Found]] = [{} for _ in starts]
    running: dict[Any, int] = {}
    done = 0

    def count(place: int) -> None:
        nonlocal done
        done += len(split[starts[place] : starts[place] + settings.batch_size])
        if progress:
            progress(done // len(names), len(split))

    def go_on(place: int) -> None:
        """Takes what is kept, then starts the chunk's next stage."""
        found = parts[place]
        part = split[starts[place] : starts[place] + settings.batch_size]
        for name in names[len(found) :]:
            known = kept.get(place, name, len(part)) if kept else None
            if known is None:
                before = {key: column.numpy() for key, column in so_far(found).items()}
                arrays = part.images.numpy(), part.labels.numpy()
                given = (*arrays, starts[place], name, before, settings, resources)
                running[task.remote(state, config.plain(), facts, *given)] = place
                return
            found[name] = known
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
