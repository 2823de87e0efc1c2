"""Whether what drives an MLflow run is still there."""

from __future__ import annotations

from functools import cached_property

from fmoe import provenance
from fmoe.errors import UserError
from fmoe.on_ray.jobs import Jobs
from fmoe.tracking import RunningRun


class Liveness:
    """address: of the cluster whose jobs are looked up, None for the default one."""

    def __init__(self, address: str | None):
        self.address = address

    @cached_property
    def _jobs(self) -> tuple[str, dict[str, str]] | str:
        """(the head's IP, status by job id), or why there is none."""
        try:
            jobs = Jobs.at(self.address)
            return jobs.head(), {job.id: job.status for job in jobs.list() if not job.over}
        except UserError as error:
            if self.address is not None:
                raise
            return str(error)

    def gone(self, run: RunningRun) -> tuple[bool | None, str]:
        """(whether its driver has gone, why); None where that cannot be told from here."""
        if run.job_id:
            return self._job_gone(run)
        if not run.driver:
            return None, "does not say what drives it"
        gone = provenance.is_gone(run.driver)
        host, pid, _ = run.driver.rsplit(":", 2)
        if gone is None:
            return None, f"runs on {host}: reap there"
        return gone, f"process {pid} {'has gone' if gone else 'is alive'}"

    def _job_gone(self, run: RunningRun) -> tuple[bool | None, str]:
        if isinstance(self._jobs, str):
            return None, f"is job {run.job_id}, and {self._jobs}"
        head, alive = self._jobs
        if run.job_id in alive:
            return False, f"job {run.job_id} is {alive[run.job_id]}"
        if run.head != head:
            return None, f"is job {run.job_id} on the cluster of {run.head}: give its --address"
        return True, f"job {run.job_id} has gone"
