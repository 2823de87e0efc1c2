"""Windows of streamed data, read ahead by Ray Data: in processes beside the one that trains.

What is read and in which order is decided before (`fmoe.data.streamed`); here it is done. Workers
of Ray Train hold all CPUs of a laptop, so reading asks for none.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fmoe.data.readers import Arrays
from fmoe.data.shards import Rows
from fmoe.data.streamed import Read
from fmoe.errors import UserError

AT_ONCE = 2
"""Windows that are being read."""


@dataclass(frozen=True)
class OnRay:
    """node: on which it is read, while that is there: files of one machine are read on it."""

    node: str | None = None

    def __call__(self, read: Read, wanted: Sequence[Rows]) -> Iterator[Arrays]:
        import ray.data  # takes a second, and few need it

        given = ray.put((read, list(wanted)))

        def window(row: dict[str, Any]) -> dict[str, Any]:
            read, wanted = ray.get(given)
            (number,) = row["item"]
            try:
                images, labels = read(wanted[number])
            except UserError as error:  # raised here it would be Ray's own, in many lines
                return {"error": np.array([str(error)])}
            return {"images": images, "labels": labels}

        quiet()
        dataset = ray.data.from_items(list(range(len(wanted))), override_num_blocks=len(wanted))
        dataset.context.execution_options.preserve_order = True
        dataset = dataset.map_batches(
            window, batch_size=1, num_cpus=0, concurrency=AT_ONCE, **self._where()
        )
        for batch in dataset.iter_batches(batch_size=None, prefetch_batches=1):
            if "error" in batch:
                raise UserError(str(batch["error"][0]))
            yield batch["images"], batch["labels"]

    def _where(self) -> dict[str, Any]:
        if self.node is None:
            return {}
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(self.node, soft=True)}


def quiet() -> None:
    """Ray Data says nothing of its own: how far training is, it says itself."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_auto_log_stats = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
