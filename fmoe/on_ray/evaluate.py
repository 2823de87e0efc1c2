"""The protocol over Ray tasks, a chunk of images each: the same verdicts as in one process."""

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
from fmoe.evaluation import Evaluation, Settings, Verdicts, judge_chunk, summarise
from fmoe.on_ray.session import Resources
from fmoe.on_ray.tasks import results


@ray.remote  # type: ignore[untyped-decorator]
def judge(
    state: dict[str, Any],
    tree: dict[str, Any],
    images: Any,
    labels: Any,
    start: int,
    settings: Settings,
    resources: Resources,
) -> Verdicts:
    device = resources.device()
    model = assembly.mixture(Config.model_validate(tree))
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in state.items()})
    part = Split(torch.from_numpy(images.copy()), torch.from_numpy(labels.copy()))
    return judge_chunk(model.to(device), part.to(device), start, settings)


def evaluate(
    model: nn.Module,
    config: Config,
    split: Split,
    settings: Settings,
    *,
    resources: Resources,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Judges all images of `split`; `progress(done, total)` counts images."""
    begin = time.perf_counter()
    state = ray.put({name: tensor.numpy() for name, tensor in copy_state(model).items()})
    task = judge.options(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=3)
    tasks = []
    for start in range(0, len(split), settings.batch_size):
        part = split[start : start + settings.batch_size]
        images, labels = part.images.numpy(), part.labels.numpy()
        tasks.append(task.remote(state, config.plain(), images, labels, start, settings, resources))

    def count(done_tasks: int) -> None:
        if progress:
            progress(min(len(split), done_tasks * settings.batch_size), len(split))

    parts = results(tasks, on_done=count)
    return summarise(parts, settings, time.perf_counter() - begin)
