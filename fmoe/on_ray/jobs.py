"""Pipelines as Ray jobs: the head node of a cluster runs the same command that a laptop would.

The client speaks HTTP with the cluster's dashboard and needs no Ray node of its own. A job's
working directory is a staged copy of `fmoe`, `pipelines` and `tune_spaces` with the files that the
command names, so nothing else (.git, .venv, data, runs) can travel; `pins.txt` in it says what
versions the submitter has, and `pipelines.in_job` holds the node to them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

import fmoe
from fmoe import provenance
from fmoe.errors import UserError, first_line
from fmoe.on_ray import private
from fmoe.on_ray.job_log import of_the_command
from fmoe.on_ray.token import auth_token
from fmoe.version import VERSION

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
PINS = "pins.txt"
SHIPPED = "submitted"  # folder of the working directory for the command's own files
STOP_SECONDS = 30  # for a stopped driver to close its MLflow run; Ray's default is 3
ANSWER_SECONDS = 8.0  # for the dashboard's first answer
ENTRYPOINT = "python -m pipelines.in_job"
PASSED_ON = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_NAME",
    "FMOE_DATA_DIR",
    "AWS_ENDPOINT_URL",
    "AWS_DEFAULT_REGION",
)


@dataclass(frozen=True)
class Job:
    """started, ended: seconds since the epoch, None where it has not."""

    id: str
    status: str
    command: str
    message: str
    started: float | None
    ended: float | None

    @property
    def over(self) -> bool:
        return bool(JobStatus(self.status).is_terminal())


@dataclass(frozen=True)
class Order:
    """`fmoe ARGUMENTS` as a job.

    env: variables of the job; they are visible to whoever sees the job, so no secrets.
    pip: have Ray install the submitter's versions on every node of the job.
    """

    arguments: Sequence[str]
    env: Mapping[str, str]
    pip: bool
    metadata: Mapping[str, str]

    @contextlib.contextmanager
    def staged(self) -> Iterator[dict[str, Any]]:
        """What is sent, with a folder of files that is there as long as the block runs."""
        job_id = f"fmoe-{self.arguments[0]}-{secrets.token_hex(4)}"
        revision = provenance.git_revision()
        env_vars = {
            **passed_on(),
            "FMOE_JOB_ID": job_id,
            "FMOE_GIT_REVISION": revision,
            "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
            **self.env,
        }
        about = {"fmoe": VERSION, "command": shlex.join(self.arguments), "git_revision": revision}
        with tempfile.TemporaryDirectory(prefix="fmoe-job-") as aside:
            given = stage(Path(aside), self.arguments)
            runtime_env: dict[str, Any] = {"working_dir": aside, "env_vars": env_vars}
            if self.pip:
                packages = [f"{name}=={version}" for name, version in provenance.pins().items()]
                runtime_env["pip"] = {"packages": packages, "pip_check": False}
            yield {
                "entrypoint": f"{ENTRYPOINT} {shlex.join(given)}",
                "submission_id": job_id,
                "runtime_env": runtime_env,
                "metadata": {**about, **self.metadata},
            }

    def told(self) -> dict[str, Any]:
        """What would be sent, for people: of the files their number and size."""
        with self.staged() as job:
            files = [p for p in Path(job["runtime_env"]["working_dir"]).rglob("*") if p.is_file()]
            return {
                "entrypoint": job["entrypoint"],
                "env": job["runtime_env"]["env_vars"],
                "pip": job["runtime_env"].get("pip", {}).get("packages", []),
                "metadata": job["metadata"],
                "files": len(files),
                "bytes": sum(file.stat().st_size for file in files),
            }


@dataclass
class Jobs:
    """The jobs of one cluster."""

    address: str
    headers: dict[str, str] = field(repr=False)
    client: JobSubmissionClient

    @classmethod
    def at(cls, address: str | None) -> Jobs:
        """Raises `UserError` where no cluster answers, or where it asks for another token."""
        url = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
        if not url.startswith(("http://", "https://")):
            raise UserError(f"--address {url}: expected the dashboard's URL, as {DEFAULT_ADDRESS}")
        logging.getLogger("ray").setLevel(logging.WARNING)
        headers = {"Authorization": f"Bearer {auth_token()}"}  # a cluster without tokens ignores it
        with answering(url):
            check(url, headers)
            client = JobSubmissionClient(url, headers=headers)
            for handler in logging.getLogger("ray").handlers:  # each of its modules has a level
                handler.setLevel(logging.WARNING)
            return cls(url, headers, client)

    def submit(self, order: Order) -> str:
        """Starts its command on the cluster's head; gives the job's id."""
        with order.staged() as job, answering(self.address):
            return str(self.client.submit_job(**job))

    def head(self) -> str:
        """The head node's IP address."""
        with answering(self.address):
            return private.head_node_ip(self.address, self.headers)

    def list(self) -> list[Job]:
        """Newest first; only those that `submit` started."""
        with answering(self.address):
            jobs = [_job(details) for details in self.client.list_jobs() if _ours(details)]
        return sorted(jobs, key=lambda job: job.started or time.time(), reverse=True)

    def get(self, job_id: str) -> Job:
        """Raises `UserError` for an unknown job."""
        with answering(self.address, job_id):
            return _job(self.client.get_job_info(job_id))

    def logs(self, job_id: str) -> str:
        with answering(self.address, job_id):
            return "".join(of_the_command([self.client.get_job_logs(job_id)]))

    def follow(self, job_id: str) -> Iterator[str]:
        """The command's lines as they come, until the job ends."""
        return of_the_command(self._chunks(job_id))

    def _chunks(self, job_id: str) -> Iterator[str]:
        """The job's output as Ray sends it."""

        async def read(stream: Any) -> str | None:
            try:
                return str(await anext(stream))
            except StopAsyncIteration:
                return None

        with answering(self.address, job_id), asyncio.Runner() as loop:  # Ctrl-C ends the read
            stream = self.client.tail_job_logs(job_id)
            try:
                while (text := loop.run(read(stream))) is not None:
                    yield text
            finally:
                loop.run(stream.aclose())

    def wait(self, job_id: str, seconds: float) -> Job:
        """The job when it is over, or as it stands after `seconds`."""
        deadline = time.monotonic() + seconds
        while not (job := self.get(job_id)).over and time.monotonic() < deadline:
            time.sleep(0.5)
        return job

    def stop(self, job_id: str) -> Job:
        """Asks the job to end, which closes its MLflow run, and waits until it has."""
        with answering(self.address, job_id):
            self.client.stop_job(job_id)
        return self.wait(job_id, STOP_SECONDS + 15)


def check(url: str, headers: Mapping[str, str]) -> None:
    """Raises `OSError` in `ANSWER_SECONDS` where nothing answers: Ray's client waits for ever.

    Raises `UserError` where another server than Ray's does.
    """
    answer = requests.get(f"{url.rstrip('/')}/api/version", headers=headers, timeout=ANSWER_SECONDS)
    if answer.status_code in (401, 403):
        return  # of the token Ray's client says more
    try:
        answer.json()["ray_version"]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{url}: what answers there is no Ray dashboard (HTTP {answer.status_code}): --address "
            f"is the dashboard's URL, as {DEFAULT_ADDRESS}"
        ) from None


def passed_on() -> dict[str, str]:
    """What of the submitter's environment a job gets."""
    return {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}


def stage(target: Path, arguments: Sequence[str]) -> list[str]:
    """Fills a job's working directory; gives the command with its files where they will be."""
    root = Path(fmoe.__file__).parent.parent
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
    for package in ("fmoe", "pipelines", "tune_spaces"):
        shutil.copytree(root / package, target / package, ignore=ignore)
    pins = [f"{name}=={version}\n" for name, version in provenance.pins().items()]
    (target / PINS).write_text("".join(pins))
    given = []
    for argument in arguments:
        file = Path(argument)
        if file.suffix in (".yaml", ".yml") and file.is_file():
            shipped = Path(SHIPPED) / file.name
            (target / SHIPPED).mkdir(exist_ok=True)
            if (target / shipped).exists():
                raise UserError(f"{argument}: two files of this name; rename one")
            shutil.copy(file, target / shipped)
            argument = str(shipped)
        given.append(argument)
    return given


@contextlib.contextmanager
def answering(address: str, job_id: str | None = None) -> Iterator[None]:
    """Turns what goes wrong between here and the cluster into a `UserError`."""
    try:
        yield
    except (OSError, aiohttp.ClientError) as error:  # requests' errors are OSErrors
        raise UserError(
            f"no Ray cluster answers at {address} ({first_line(error)}): "
            "is it up, and its dashboard forwarded (`ray dashboard cluster.yaml`)?"
        ) from None
    except AuthenticationError:
        raise UserError(
            f"the cluster at {address} asks for another token: copy its ~/.ray/auth_token here, "
            "mode 0600, or set RAY_AUTH_TOKEN_PATH"
        ) from None
    except RuntimeError as error:
        text = str(error)
        if job_id is not None and ("404" in text or "does not exist" in text):
            raise UserError(f"{job_id}: no such job at {address}; see `fmoe jobs list`") from None
        raise UserError(f"the cluster at {address} refused: {_reason(text)}") from None


def _reason(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "without a reason"


def _ours(details: Any) -> bool:
    return "fmoe" in (details.metadata or {})


def _job(details: Any) -> Job:
    def seconds(milliseconds: int | None) -> float | None:
        return milliseconds / 1000 if milliseconds else None

    return Job(
        id=details.submission_id,
        status=str(JobStatus(details.status).value),
        command=(details.metadata or {}).get("command", details.entrypoint),
        message=details.message or "",
        started=seconds(details.start_time),
        ended=seconds(details.end_time),
    )
