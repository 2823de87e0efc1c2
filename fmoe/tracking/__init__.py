"""The only folder that imports mlflow: runs, metrics, models, the registry."""

from fmoe.tracking import readiness, registry
from fmoe.tracking.registry import Version, download, find_version
from fmoe.tracking.runs import RunningRun, Tracker, end, finishing, gone, running
from fmoe.tracking.store import client, read_only, shown, store_uri, writing

__all__ = [
    "RunningRun",
    "Tracker",
    "Version",
    "client",
    "download",
    "end",
    "find_version",
    "finishing",
    "gone",
    "read_only",
    "readiness",
    "registry",
    "running",
    "shown",
    "store_uri",
    "writing",
]
