"""What `fmoe doctor` looks at: each check says in a line what is there, and what would mend it."""

from __future__ import annotations

import importlib.util
import os
import platform
import resource
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil

import fmoe
from fmoe.errors import UserError, first_line

GIB = 2**30
LEAST_DISK = (
    2 * GIB
)  # bytes, for checkpoints and MLflow's copies of the demo's size many times over
LEAST_SHARED = GIB  # bytes of /dev/shm: Docker gives 64 MiB where nobody asks for more
LEAST_FILES = 4096  # open files: Ray's processes have hundreds each
EXTRAS = {
    "timm": "timm's networks: pip install 'fmoe[timm]'",
    "onnx": "fmoe export --format onnx: pip install 'fmoe[onnx]'",
    "optuna_dashboard": "fmoe studies dashboard: pip install 'fmoe[dashboard]'",
    "boto3": "MLflow's files on s3://: pip install boto3",
}


class State(StrEnum):
    OK = "ok"
    NOTE = "note"  # works, but for something
    FAULT = "fault"


@dataclass(frozen=True)
class Finding:
    """remedy: what to do about it; empty where all is well."""

    name: str
    state: State
    text: str
    remedy: str = ""


Check = Callable[[], Iterator[Finding]]


def findings(checks: tuple[Check, ...]) -> Iterator[Finding]:
    """Of each check in turn; what it raises for the user is a fault."""
    for check in checks:
        try:
            yield from check()
        except UserError as error:
            yield Finding(check.__name__, State.FAULT, str(error))


def python() -> Iterator[Finding]:
    where = f"Python {platform.python_version()} ({sys.executable}), {platform.platform()}"
    yield Finding("fmoe", State.OK, f"{fmoe.__version__} in {Path(fmoe.__file__).parent}")
    yield Finding("python", State.OK, where)


def packages() -> Iterator[Finding]:
    """Whether what is installed is what fmoe asks for."""
    from packaging.requirements import Requirement

    try:
        lines = requires("fmoe") or []
    except PackageNotFoundError:
        remedy = "pip install fmoe's wheel, or make setup in its checkout"
        yield Finding("packages", State.NOTE, "fmoe is on the path, but not installed", remedy)
        return
    wrong = []
    for needed in map(Requirement, lines):
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            here = version(needed.name)
        except PackageNotFoundError:
            here = "missing"
        if here == "missing" or not needed.specifier.contains(here, prereleases=True):
            wrong.append(f"{needed.name} {here} (needs {needed.specifier or 'any'})")
    shown = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "mlflow"))
    if wrong:
        text = f"{shown}; {', '.join(wrong)}"
        yield Finding("packages", State.FAULT, text, "pip install -c constraints.txt fmoe")
    else:
        yield Finding("packages", State.OK, shown)


def extras() -> Iterator[Finding]:
    lacking = [told for module, told in EXTRAS.items() if importlib.util.find_spec(module) is None]
    if lacking:
        yield Finding("extras", State.NOTE, "not installed", "; ".join(lacking))
    else:
        yield Finding("extras", State.OK, ", ".join(EXTRAS))


def processors() -> Iterator[Finding]:
    import torch

    from fmoe.cpus import usable_cpus
    from fmoe.numerics.precision import multiplies_bfloat16

    low = multiplies_bfloat16(torch.device("cpu"))
    text = f"{usable_cpus()} usable of {os.cpu_count()}"
    if low:
        yield Finding("cpus", State.OK, f"{text}, multiply bfloat16")
    else:
        remedy = "precision: bfloat16 is computed as float32 here, at no gain"
        yield Finding("cpus", State.NOTE, f"{text}, do not multiply bfloat16", remedy)
    memory = psutil.virtual_memory()
    yield Finding("memory", State.OK, f"{gib(memory.available)} free of {gib(memory.total)}")


def gpus() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        built = f"torch {torch.__version__} has CUDA {torch.version.cuda or 'not built in'}"
        remedy = "recipes of width 64 want a GPU; `fmoe submit` runs them on a cluster"
        yield Finding("gpus", State.NOTE, f"none that torch can use ({built})", remedy)
        return
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        yield Finding("gpus", State.OK, f"{about.name}, {gib(about.total_memory)}")


def limits() -> Iterator[Finding]:
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = files == resource.RLIM_INFINITY or files >= LEAST_FILES
    remedy = "" if enough else f"ulimit -n {LEAST_FILES if most < 65536 else 65536}"
    yield Finding("open files", State.OK if enough else State.NOTE, f"at most {files}", remedy)
    shared = Path("/dev/shm")  # noqa: S108 - where Ray keeps its object store
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        small = size < LEAST_SHARED
        remedy = "docker run --shm-size=10gb (Ray puts its objects on a disk otherwise)" * small
        state = State.NOTE if small else State.OK
        yield Finding("shared memory", state, f"{gib(size)} at {shared}", remedy)


def home() -> Iterator[Finding]:
    """FMOE_HOME, where everything is kept that no URI says otherwise of."""
    from fmoe import paths

    place = paths.home()
    if not paths.writable(place):
        yield Finding("home", State.FAULT, f"{place} cannot be written", "set FMOE_HOME")
        return
    yield _disk("home", place, "set FMOE_HOME to a larger disk")


def temporary() -> Iterator[Finding]:
    from fmoe.on_ray import local

    folder = local.folder()
    try:
        yield _disk("ray's files", folder, "set RAY_TMPDIR to a larger disk")
    finally:
        local.tidy(folder)


def _disk(name: str, place: Path, remedy: str) -> Finding:
    there = next(path for path in (place, *place.parents) if path.exists())
    free = shutil.disk_usage(there).free
    small = free < LEAST_DISK
    text = f"{place}, {gib(free)} free"
    return Finding(name, State.NOTE if small else State.OK, text, remedy if small else "")


def storage() -> Iterator[Finding]:
    """FMOE_STORAGE, by a file that is written and taken away again."""
    from fmoe.storage.folder import Folder

    place = os.environ.get("FMOE_STORAGE")
    if not place:
        return
    folder, name = Folder.at(place).reach(), f"doctor-{secrets.token_hex(4)}"
    begin = time.perf_counter()
    try:
        folder.write(name, b"fmoe doctor")
        folder.delete_file(name)
    except OSError as error:
        text = f"FMOE_STORAGE {place}: cannot be written ({first_line(error)})"
        yield Finding("storage", State.FAULT, text, "give its credentials, or another place")
        return
    yield Finding("storage", State.OK, f"{place}, written in {time.perf_counter() - begin:.1f} s")


def data() -> Iterator[Finding]:
    from fmoe.data import listing, own

    sets = [each["name"] for each in listing.built_in() if each["place"]]
    sets += [each.name for each in own.listed(None)]
    place = os.environ.get("FMOE_DATA_DIR")
    if place and "://" not in place and not Path(place).is_dir():
        yield Finding("data", State.FAULT, f"FMOE_DATA_DIR {place}: no such folder", "mend it")
        return
    where = f" (FMOE_DATA_DIR {place}, not looked through)" if place else ""
    yield Finding("data", State.OK, f"{', '.join(sets)}{where}")


def mlflow() -> Iterator[Finding]:
    """The tracking store, which answers and can be written."""
    from fmoe import tracking
    from fmoe.tracking import own
    from fmoe.tracking.store import is_own

    if is_own() and not (own.folder() / own.DATABASE).exists():
        yield Finding("mlflow", State.OK, f"{tracking.shown()}: is made by the first run")
        return
    tracking.readiness.check()
    yield Finding("mlflow", State.OK, tracking.shown())


def ray() -> Iterator[Finding]:
    """The cluster that RAY_ADDRESS names, or one that is started on this machine and ended."""
    from fmoe.on_ray import reach
    from fmoe.on_ray.session import session

    begin = time.perf_counter()
    if address := reach.cluster_address():
        head = reach.reach(address)
        yield Finding("ray", State.OK, f"a cluster at {head}")
        return
    with session(1):
        took = time.perf_counter() - begin
    yield Finding("ray", State.OK, f"starts on this machine in {took:.0f} s (RAY_ADDRESS is unset)")


def gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


QUICK: tuple[Check, ...] = (
    python, packages, extras, processors, gpus, limits, home, temporary, storage, data, mlflow,
)  # fmt: skip
ALL = (*QUICK, ray)
