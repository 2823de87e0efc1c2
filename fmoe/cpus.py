"""How many CPUs this process may use, which may be fewer than the machine has.

A CPU mask (`taskset`, SLURM, a cpuset) says which; a control group's quota (`docker run --cpus`, a
Kubernetes limit, systemd's CPUQuota) says for how much of the time. Quotas hold for a group and all
below it, so every group from this process's own to the root is asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CONTROL_GROUPS = Path("/sys/fs/cgroup")


def usable_cpus() -> int:
    """At least 1. A quota is rounded down: 1.5 CPUs keep one thread busy all of the time."""
    return max(1, int(min([float(_masked()), *_quotas(CONTROL_GROUPS, _own_groups())])))


def _masked() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no masks
        return os.cpu_count() or 1


def _own_groups() -> list[tuple[str, PurePosixPath]]:
    """(controllers, path) as /proc/self/cgroup lists them; version 2 has no controllers' names."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return []
    split = [line.split(":", 2) for line in lines]
    return [(controllers, PurePosixPath(path)) for _, controllers, path in split]


def _quotas(root: Path, groups: list[tuple[str, PurePosixPath]]) -> Iterator[float]:
    """CPUs that each of the groups, and each one above, may use; those without a limit are left
    out. root: where control groups are mounted.

    In a container the mount often starts at the container's own group: folders that are not there
    are passed over, and the mount's root is always looked at.
    """
    for controllers, path in groups:
        if not controllers:
            mounts = [root, root / "unified"]
        elif "cpu" in controllers.split(","):
            mounts = [root / controllers, root / "cpu"]
        else:
            continue
        for mount in dict.fromkeys(mounts):
            for group in (path, *path.parents):
                quota = _quota(mount / group.relative_to("/"))
                if quota is not None:
                    yield quota


def _quota(group: Path) -> float | None:
    """Of one group, in CPUs."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        except OSError:
            return None
    try:
        return int(quota) / int(period) if int(quota) > 0 else None
    except ValueError:  # max
        return None
