"""What `fmoe train` and `fmoe tune` say with --dry-run: what they would do, and what it would take.

What can be checked without images is checked as they would; nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fmoe import config, tracking
from fmoe.config import Config
from fmoe.cpus import usable_cpus
from fmoe.data import check_there, find, origin
from fmoe.on_ray.workers import Workers
from fmoe.planning.machines import GPUS
from pipelines import planning
from pipelines.data_claim import check_images

if TYPE_CHECKING:
    from pipelines.study.run import Request as StudyRequest
    from pipelines.training.run import Request as RunRequest

ASSUMED_GPU, LINK = "a100", "10gbit"
"""Of the plan, where this machine has a GPU that `fmoe plan` does not know."""


def of_run(request: RunRequest) -> dict[str, Any]:
    """What `fmoe train --dry-run --json` prints. Raises `UserError` as the run would."""
    from pipelines.training.claim import claim

    settings = config.load(request.recipe, request.overrides)
    name, folder = request.place(settings)
    workers = Workers.of(request.workers, settings.parallel)
    about = checked(settings, request)
    there = folder.exists("config.yaml")
    finished = claim(folder, settings) if there else None
    plan = planning.Request(
        request.recipe,
        overrides=request.overrides,
        gpus=workers.most,
        gpu_type=this_machine(request.gpu)[0],
        link=LINK,
        data_dir=request.data_dir,
    )
    return {
        "name": name,
        "run_dir": folder.uri,
        "state": "finished" if finished else "resumes" if there else "new",
        **about,
        "workers": str(workers),
        "plan": planning.planned(plan),
    }


def of_study(request: StudyRequest) -> dict[str, Any]:
    """What `fmoe tune --dry-run --json` prints. Raises `UserError` as the study would."""
    from pipelines.study.claim import claim, fingerprint

    space = request.checked()
    identity = fingerprint(space, request.workers)
    name, folder = request.place(identity)
    about = checked(space.base, request)
    there = folder.exists("study.json")
    new = not (there or request.resume)
    known = {} if new else claim(folder, space, identity, name, request.resume)
    kind, count = this_machine(None)
    plan = planning.Request(
        request.space,
        overrides=request.overrides,
        gpus=max(request.workers, count),
        gpu_type=kind,
        link=LINK,
        study=True,
        workers_per_trial=request.workers,
        budget=request.budget,
        data_dir=request.data_dir,
    )
    return {
        "name": name,
        "study_dir": folder.uri,
        "state": "finished" if "result" in known else "resumes" if there else "new",
        **about,
        "workers": str(request.workers),
        "trials": space.most,
        "plan": planning.planned(plan),
    }


def checked(settings: Config, request: RunRequest | StudyRequest) -> dict[str, Any]:
    """What is asked about data, experts and the registry before anything starts."""
    tracking.registry.check_new_name(request.register_as)
    check_images(settings, request.data_dir)
    check_there(settings.data.name, request.data_dir)
    data = settings.data.name
    counts = planning.counted(find(data, request.data_dir), settings)
    return {
        "data": {
            "name": data,
            "from": origin(data, request.data_dir),
            "train": counts.train,
            "val": counts.val,
            "test": counts.test,
        },
        "experts": len(settings.experts.members),
        "pretrained": len(settings.experts.pretrained),
        "register_as": request.register_as or f"fmoe-{data}",
    }


def this_machine(gpu: bool | None) -> tuple[str, int]:
    """What `fmoe plan --gpu-type` calls it, and how many workers of one CPU or GPU it takes."""
    import torch

    if gpu is False or not (gpu or torch.cuda.is_available()):
        return "cpu", usable_cpus()
    name = torch.cuda.get_device_name().lower() if torch.cuda.is_available() else ""
    kind = next((kind for kind in GPUS if kind in name), ASSUMED_GPU)
    return kind, max(1, torch.cuda.device_count())


def told(answer: Mapping[str, Any]) -> Iterator[str]:
    """The same for people."""
    data = answer["data"]
    yield f"name   {answer['name']} ({answer['state']})"
    yield f"folder {answer.get('run_dir') or answer['study_dir']}"
    yield (
        f"data   {data['name']}: {data['train']} to train on, {data['val']} to validate, "
        f"{data['test']} to test" + (f" ({data['from']})" if data["from"] else "")
    )
    yield f"model  {answer['experts']} experts, {answer['pretrained']} of them trained apart first"
    yield f"       registered as {answer['register_as']}"
    yield from planning.table(answer["plan"])
    yield "nothing was started"
