"""`fmoe jobs`: what was submitted to a Ray cluster."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.options import Address, Json
from pipelines.output import result, say

if TYPE_CHECKING:
    from fmoe.on_ray.jobs import Job, Jobs

app: typer.Typer = typer.Typer(help="Jobs on a Ray cluster.", no_args_is_help=True)
JobId = Annotated[str, typer.Argument(help="As `fmoe submit` and `fmoe jobs list` print it.")]


@app.callback()
def _group() -> None:
    """Jobs on a Ray cluster that `fmoe submit` started."""


@app.command("list")
def list_jobs(address: Address = None, json: Json = False) -> None:
    """Jobs of the cluster, newest first.

    \b
    fmoe jobs list --address http://127.0.0.1:8265
    """
    from fmoe.on_ray.jobs import Jobs

    with result(json) as answer:
        jobs = Jobs.at(address).list()
        answer["jobs"] = [described(job) for job in jobs]
    if not jobs:
        say(json, "no jobs")
    for job in jobs:
        say(json, f"{job.id}  {job.status:<9}  {clock(job.started)}  {took(job):>7}  {job.command}")


@app.command()
def status(job_id: JobId, address: Address = None, json: Json = False) -> None:
    """A job's status, and why it failed.

    \b
    fmoe jobs status fmoe-train-1a2b3c4d
    """
    from fmoe.on_ray.jobs import Jobs

    with result(json) as answer:
        job = Jobs.at(address).get(job_id)
        answer |= described(job)
    say(json, f"{job.id}  {job.status}  {took(job)}  {gist(job.message)}".rstrip())


@app.command()
def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option(help="Until the job ends.")] = False,
    address: Address = None,
) -> None:
    """A job's output. Ctrl-C leaves the job running.

    \b
    fmoe jobs logs fmoe-train-1a2b3c4d --follow
    """
    from fmoe.on_ray.jobs import Jobs

    jobs = Jobs.at(address)
    if follow:
        followed(jobs, job_id)
    else:
        sys.stdout.write(jobs.logs(job_id))


@app.command()
def stop(job_id: JobId, address: Address = None, json: Json = False) -> None:
    """End a job; its MLflow run ends as KILLED. The same command submitted again resumes it.

    \b
    fmoe jobs stop fmoe-train-1a2b3c4d
    """
    from fmoe.on_ray.jobs import Jobs

    with result(json) as answer:
        job = Jobs.at(address).stop(job_id)
        answer |= described(job)
    say(json, f"{job.id}  {job.status}")


def followed(jobs: Jobs, job_id: str) -> Job:
    """Prints the job's output as it comes; gives the job when it is over."""
    try:
        for text in jobs.follow(job_id):
            sys.stdout.write(text)
            sys.stdout.flush()
        return jobs.wait(job_id, 30)
    except KeyboardInterrupt:
        print(
            f"\nfmoe: {job_id} goes on without this terminal: `fmoe jobs logs {job_id} --follow` "
            f"looks again, `fmoe jobs stop {job_id}` ends it",
            file=sys.stderr,
        )
        sys.exit(130)


def described(job: Job) -> dict[str, Any]:
    return {
        "job_id": job.id,
        "status": job.status,
        "command": job.command,
        "message": job.message,
        "started": job.started,
        "ended": job.ended,
    }


def gist(message: str) -> str:
    """Ray appends the last 20,000 letters of the log to a failed job's message."""
    return message.partition(", last available logs")[0].strip()


def clock(time: float | None) -> str:
    return f"{datetime.fromtimestamp(time):%Y-%m-%d %H:%M:%S}" if time else f"{'-':<19}"


def took(job: Job) -> str:
    if job.started is None:
        return "-"
    end = job.ended or datetime.now().timestamp()
    return f"{end - job.started:.0f} s"


if __name__ == "__main__":
    from pipelines.entry import alone

    alone("jobs", app)
