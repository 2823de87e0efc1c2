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
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fmoe.data.readers import Arrays
from fmoe.data.shards import Rows
from fmoe.data.streamed import Read
from fmoe.errors import UserError

AT_ONCE = 1
"""Windows that are being read."""


@dataclass(frozen=True)
class OnRay:
    """node: on which it is read as long as that is there; None: on any."""

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

        logging.getLogger("ray.data").setLevel(logging.ERROR)  # importing it has set it
        windows = len(wanted)
        dataset = ray.data.from_items(list(range(windows)), override_num_blocks=windows)
        context = dataset.context
        context.execution_options.preserve_order = True
        context.enable_progress_bars = context.enable_auto_log_stats = False
        if self.node is not None:
            context.scheduling_strategy = NodeAffinitySchedulingStrategy(self.node, soft=True)
        dataset = dataset.map_batches(
            window, batch_size=1, num_cpus=0, concurrency=min(AT_ONCE, windows)
        )
        for batch in dataset.iter_batches(batch_size=None, prefetch_batches=1):
            if "error" in batch:
                raise UserError(str(batch["error"][0]))
            yield batch["images"], batch["labels"]
