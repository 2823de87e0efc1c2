"""How busy the nodes of a run are: CPU, memory, disk, network and GPUs, by MLflow's own monitor."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

SWITCH = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
"""MLflow's own; here it is on unless it says `false`."""
SYSTEM = "system/"
"""What the names of its metrics start with."""


@dataclass(frozen=True)
class Monitor:
    """Of a run in the store at `uri`; it travels to workers on other nodes."""

    run_id: str
    uri: str

    @contextmanager
    def on(self, node: str) -> Iterator[None]:
        """While the block runs, what this machine does is logged as `system/NODE/…`, every ten
        seconds. A store that goes away ends the monitor, not the block."""
        if os.environ.get(SWITCH, "true").lower() in ("false", "0"):
            yield
            return
        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
        monitor = SystemMetricsMonitor(
            self.run_id, resume_logging=True, node_id=node, tracking_uri=self.uri
        )
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()
