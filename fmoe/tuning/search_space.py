"""Spaces: what a study varies, what it is after, and what it may cost. No Ray.

Those of `tune_spaces` come with the wheel and go by name; others are files.

    recipe: digits
    set: {joint.epochs: 6}
    metrics: {val_robust: max}
    budget: {trials: 12}
    space:
      gate.kind: {choice: [conv, linear]}
      gate.width: {choice: [4, 8], when: {gate.kind: conv}}
      gate.temperature: {loguniform: [0.3, 3]}

Paths are those of `--set`. Values are drawn in the file's order: `when` compares with what stands
at a path by then, and a whole part (`gate: {choice: [{kind: conv}, …]}`) may come before its keys.
A space is checked before anything starts: every path is in the recipe, and what it samples are
configurations.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from fmoe import config, schema
from fmoe.config import Config
from fmoe.config.recipes import refuse_moved
from fmoe.errors import UserError
from fmoe.tuning.domains import Domain, Suggest, Sweep, Walk
from fmoe.tuning.settings import Study

logger = logging.getLogger(__name__)

SAMPLED_TRIALS = 100
RESAMPLED_SHARE = 0.25


@dataclass(frozen=True)
class Space:
    """A checked study over a recipe. source: the name or file, for messages; text: as written."""

    study: Study
    base: Config
    domains: tuple[Domain, ...]
    source: str
    text: str

    def sample(self, trial: Suggest) -> dict[str, Any]:
        """One value for each path whose condition holds, in the file's order."""
        values, tree = {}, self.base.plain()
        for domain in self.domains:
            if domain.holds(tree):
                values[domain.path] = domain.sample(trial)
                config.put(tree, domain.path, copy.deepcopy(values[domain.path]), self.source)
        return values

    def config(self, values: Mapping[str, Any]) -> Config:
        """The recipe with these values. Raises `UserError`."""
        tree = self.base.plain()
        for path, value in values.items():
            config.put(tree, path, copy.deepcopy(value), f"{self.source}: {path}")
        return config.validate(tree, self.source)

    def explore(self, values: Mapping[str, Any], draw: random.Random) -> dict[str, Any]:
        """Values near these, as PBT explores: each drawn anew, or moved one step or by a fifth.

        Of the paths whose condition holds by then, as `sample` does.
        """
        fresh = Sweep(draw.randrange(SAMPLED_TRIALS, 2**31))
        moved, tree = {}, self.base.plain()
        for domain in self.domains:
            if not domain.holds(tree):
                continue
            near = domain.path in values and draw.random() > RESAMPLED_SHARE
            value = domain.near(values[domain.path], draw) if near else domain.sample(fresh)
            moved[domain.path] = value
            config.put(tree, domain.path, copy.deepcopy(value), self.source)
        return moved

    @property
    def most(self) -> int:
        """Trials of the whole study: a grid may have fewer than the budget."""
        trials, searcher = self.study.budget.trials, self.study.searcher
        if not searcher.in_order:
            return trials
        listed = sum(1 for _ in islice(searcher.trials(self), trials))
        return min(trials, int(self.study.has_baseline) + listed)

    @cached_property
    def samples(self) -> list[Config]:
        """What the space gives, every option and both ends of every range among it."""
        return [self.config(self.sample(Sweep(index))) for index in range(SAMPLED_TRIALS)]

    @property
    def epochs(self) -> int:
        """Of the longest trial."""
        return max(sample.joint.epochs for sample in (self.base, *self.samples))

    def grid(self) -> Iterator[dict[str, Any]]:
        """All combinations that are configurations, in order; raises `UserError` for no steps."""
        for domain in self.domains:
            if domain.kind in ("uniform", "loguniform"):
                raise UserError(
                    f"{self.source}: {domain.path}: a grid needs choice, int or quniform, "
                    f"not {domain.kind}"
                )
        places: list[int] | None = []
        while places is not None:
            walk = Walk(places)
            values = self.sample(walk)
            try:
                self.config(values)
            except UserError as error:
                logger.warning("%s; left out", error)
            else:
                yield values
            places = walk.following()


def spaces() -> list[str]:
    """The names of those that come with the wheel."""
    files = resources.files("tune_spaces").iterdir()
    return sorted(file.name[:-5] for file in files if file.name.endswith(".yaml"))


def written(space: str) -> str:
    """The text of a packaged space by name, or of a file. Raises `UserError`."""
    if space in spaces():
        return (resources.files("tune_spaces") / f"{space}.yaml").read_text()
    path, names = Path(space), ", ".join(spaces())
    if os.path.lexists(path):
        return config.read_text(path)
    if path.suffix or os.sep in space:
        raise UserError(f"{space}: not readable (no such file); by name there are {names}")
    raise UserError(f"unknown space {space!r}: there are {names}; or give a YAML file")


def kinds(part: str) -> list[str]:
    """The names of what a part of a study (`scheduler`, `searcher`) may be, as in its union."""
    members = get_args(Study.model_fields[part].annotation)
    return [member.model_fields["kind"].default for member in members]


def load(
    file: str,
    overrides: Sequence[str] = (),
    *,
    budget: Mapping[str, Any] | None = None,
    scheduler: str | None = None,
    searcher: str | None = None,
) -> Space:
    """A packaged space's name or a file. overrides: as `--set`, on its recipe; the others take the
    place of its own.

    Raises `UserError` naming the file and the key.
    """
    text = written(file)
    tree = config.parse_yaml(text, file)
    own = tree.get("budget") or {}
    if budget and isinstance(own, dict):  # the check below refuses what is no mapping
        tree["budget"] = {**own, **budget}
    for key, kind in (("scheduler", scheduler), ("searcher", searcher)):
        own = tree.get(key)
        if kind and kind not in kinds(key):
            raise UserError(
                f"--{key} {kind}: there is no such one; there are {', '.join(kinds(key))}"
            )
        if kind and not (isinstance(own, dict) and own.get("kind") == kind):
            tree[key] = {"kind": kind}
    try:
        study = Study.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{file}: {schema.faults(error, tree)}") from None
    given = [f"{key}={json.dumps(value, default=str)}" for key, value in study.set.items()]
    base = config.load(beside(Path(file), study.recipe), [*given, *overrides])
    try:
        domains = tuple(Domain.parse(key, value) for key, value in study.space.items())
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    space = Space(study, base, domains, file, text)
    check(space)
    return space


def beside(file: Path, recipe: str) -> str:
    """A recipe's file is looked for beside the space's."""
    other = file.parent / recipe
    return str(other) if recipe not in config.recipes() and other.is_file() else recipe


def check(space: Space) -> None:
    """Raises `UserError` where a path is unknown, or a sampled configuration not valid."""
    before: list[str] = []
    for domain in space.domains:
        if domain.path.startswith(SAME_FOR_ALL):
            raise UserError(
                f"{space.source}: {domain.path}: decides what trials learn from or how they are "
                "judged, and must be the same for all; give it under `set`"
            )
        for path in (domain.path, *domain.when):
            made = any(path.startswith(f"{part}.") or path == part for part in before)
            made |= any(part.endswith(".kind") and path.startswith(part[:-4]) for part in before)
            try:
                config.get(space.base.plain(), path)
            except (KeyError, ValueError):
                if not made:
                    named: dict[str, Any] = {}
                    config.put(named, path, None, space.source)
                    refuse_moved(named, space.source)
                    raise UserError(
                        f"{space.source}: {path}: there is no such path in {space.study.recipe}"
                    ) from None
        before.append(domain.path)
    scheduler, searcher = space.study.scheduler, space.study.searcher
    if scheduler.takes_over:
        for domain in space.domains:
            if not domain.path.startswith(CHANGEABLE):
                raise UserError(
                    f"{space.source}: {domain.path}: {scheduler.kind} changes a trial while it "
                    "trains, and this decides its network or experts; possible are "
                    f"{', '.join(CHANGEABLE)}"
                )
    if searcher.in_order:
        next(searcher.trials(space), None)
    assert space.samples


SAME_FOR_ALL = ("data.name", "data.val_images", "data.train_images", "evaluate", "joint.validation")
CHANGEABLE = ("gate.temperature", "joint.attack", "joint.loss", "joint.optimizer", "joint.balance")
"""What may change between two epochs of a mixture."""
