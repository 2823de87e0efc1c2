"""What `fmoe plan` asks and how it is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmoe import config
from fmoe.config import Config
from fmoe.data import find
from fmoe.data.own import Own
from fmoe.errors import UserError
from fmoe.on_ray.workers import Workers
from fmoe.planning import calibration, study
from fmoe.planning.machines import link, machine
from fmoe.planning.plan import Counts, Planner, Reached, Setting
from fmoe.tuning import search_space

GIB = 2**30


@dataclass(frozen=True)
class Request:
    """What the command line asked for, as `fmoe plan --help` says."""

    recipe: str
    overrides: Sequence[str] = ()
    gpus: int = 1
    gpu_type: str = "a100"
    link: str = "10gbit"
    price: float | None = None
    calibrate: bool = False
    study: bool = False
    workers_per_trial: int = 1
    budget: Mapping[str, float] = field(default_factory=dict)
    """Of a study, instead of the space's own."""
    data_dir: str | None = None


def planned(asked: Request) -> dict[str, Any]:
    """What `fmoe plan --json` prints. Raises `UserError`."""
    speed, space = link(asked.link), None
    if asked.study or not known_recipe(asked.recipe):
        space = search_space.load(asked.recipe, asked.overrides, budget=asked.budget)
    settings = space.base if space else config.load(asked.recipe, asked.overrides)
    found = find(settings.data.name, asked.data_dir)
    facts, images = found.facts, counted(found, settings)
    each = asked.workers_per_trial if space else asked.gpus
    of = machine(asked.gpu_type, asked.gpus)
    reached: dict[str, Reached] = {}
    if asked.calibrate:
        here = machine("cpu", asked.gpus if of.name == "cpu" else 1)
        workers = each if of.name == "cpu" else 1
        reached = calibration.reached(settings, facts, here, workers)
    setting = Setting(of, asked.gpus, speed, reached)
    if space:
        answer = study.plan(space, facts, images, setting, each)
    else:
        answer = Planner(settings, facts, images, setting).plan().to_json()
    price = None if asked.price is None else asked.price * asked.gpus * answer["hours"]
    about = {"recipe": asked.recipe, "study": space is not None, "calibrated": asked.calibrate}
    place = {"gpus": asked.gpus, "gpu_type": asked.gpu_type, "link": asked.link}
    return {**about, **place, **answer, "price": price, "memory_of_gpu": of.memory}


def known_recipe(name: str) -> bool:
    """Whether it is a recipe; a file is one that has no `space`."""
    if name in config.recipes():
        return True
    if name in search_space.spaces():
        return False
    if not Path(name).is_file():
        raise UserError(f"{name}: no recipe and no space of that name, and no file")
    tree = config.parse_yaml(config.read_text(Path(name)), name)
    return "space" not in tree


def counted(found: Any, settings: Config) -> Counts:
    """Of a data set, less what is kept for validation. Raises `UserError` for one whose size is
    not known without reading it."""
    wanted = settings.data
    if isinstance(found, Own):
        parts = {name: part.images for name, part in found.about.parts.items()}
        train, test = parts["train"], parts["test"]
        val = parts.get("val") or wanted.val_images or found.info.val_images
        left = train if "val" in parts else train - val
    else:
        if found.images is None:
            raise UserError(f"data set {wanted.name}: does not say how many images it has")
        train, test = found.images
        val = wanted.val_images or found.info.val_images
        left = train - val
    return Counts(min(left, wanted.train_images or left), val, test)


def table(answer: dict[str, Any]) -> Iterator[str]:
    kind = "study" if answer["study"] else "run"
    where = f"{answer['gpus']} {answer['gpu_type']}, link {answer['link']}"
    yield (
        f"{kind}    {answer['recipe']} on {where}"
        + ("" if answer["calibrated"] else "  (shares of peaks assumed: --calibrate measures them)")
    )
    for phase, hours in answer["hours_by_phase"].items():
        yield f"  {phase:9s} {told(hours)}"
    yield f"  in all    {told(answer['hours'])}"
    if answer["price"] is not None:
        yield f"  price     {answer['price']:,.2f}"
    if answer["study"]:
        yield (
            f"  {answer['trials']} trials, {answer['trials_at_once']} at once, "
            f"{told(answer['hours_per_trial'])} each, none pruned; {answer['experts']} experts "
            "trained once (of the first trials)"
        )
    yield "  data x expert   a step   exchange   memory      sent a step"
    for way in answer["ways"]:
        best = way["expert"] == answer["parallel"]["expert"]
        yield (
            f"{'* ' if best else '  '}{way['data']:4d} x {way['expert']:<4d} "
            f"{way['seconds'] * 1e3:9.1f} ms {100 * way['exchange'] / way['seconds']:6.0f} %  "
            f"{way['memory_bytes'] / GIB:8.2f} GiB {way['bytes_per_step'] / 1e6:9.1f} MB"
            + ("" if way["fits"] else "  does not fit")
        )
    if answer["not_counted"]:
        yield f"  not counted: evaluate.attacks {', '.join(answer['not_counted'])}"


def told(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.1f} min" if hours < 1 else f"{hours:,.1f} h"


def of_command(
    command: str, given: Mapping[str, Any], gpu_type: str, speed: str
) -> dict[str, Any] | None:
    """The plan of a command with these options; None of one that trains nothing."""
    place: dict[str, Any] = {"gpu_type": gpu_type, "link": speed}
    place["data_dir"] = given.get("data_dir")
    overrides = given.get("overrides") or ()
    if command == "train":
        parallel = config.load(given["recipe"], overrides).parallel
        workers = Workers.of(given["workers"], parallel).most
        return planned(Request(given["recipe"], overrides=overrides, gpus=workers, **place))
    if command == "tune":
        each = given["workers"]
        of_trial: dict[str, Any] = {"gpus": each, "workers_per_trial": each, "study": True}
        budget = {key: given[key] for key in ("trials", "minutes") if given[key] is not None}
        of_trial["budget"] = budget
        return planned(Request(given["space"], overrides=overrides, **of_trial, **place))
    return None


def told_of_order(answer: Mapping[str, Any]) -> Iterator[str]:
    """What `fmoe submit --dry-run` prints."""
    if answer["plan"] is not None:
        yield from table(answer["plan"])
    sent = answer["sent"]
    yield f"would run   {sent['entrypoint']}"
    yield f"with        {sent['files']} files, {sent['bytes'] / 1e3:.0f} kB"
    for name, value in sent["env"].items():
        yield f"variable    {name}={value}"
    if sent["pip"]:
        yield f"installed   {len(sent['pip'])} packages by pip"
    yield "nothing was sent"
