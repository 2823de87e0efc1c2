"""Training checkpoints: safetensors and JSON, never a pickle.

A checkpoint is `epoch-0003/{state.safetensors, manifest.json}`; the manifest carries the metrics
of all epochs so far, so nothing that was reported can be lost. Kept are the last two (should the
newest be damaged, the one before it serves) and the best. `epoch-0004-step-000120` was made inside
of an epoch: it counts as long as the one before that epoch does, and goes when the epoch is done.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, nn

from fmoe.errors import UserError
from fmoe.storage.folder import MANIFEST, Damaged, Folder
from fmoe.storage.tensors import Header, Tensors, pack, read_header, unpack

STATE = "state.safetensors"
CHECKPOINT_FORMAT = 2
"""1 was 0.1.0's, which kept `momentum.*` and nothing else of an optimizer."""
MODEL, DEPLOYED, WARM = "model", "deployed", "warm"
RANK = "rank"
FAMILY = re.compile(r"model|deployed|warm|((optimizer|after):[a-z]|rank:[0-9])[a-z0-9_-]{0,63}")
FAMILIES = TypeAdapter(list[Annotated[str, Field(max_length=100)]])
HISTORY = TypeAdapter(list[dict[str, float]])
EPOCH = re.compile(r"epoch-([0-9]{4,9})")
STEP = re.compile(r"epoch-([0-9]{4,9})-step-([0-9]{6,12})")


@dataclass(frozen=True)
class Begun:
    """How far an epoch is that a checkpoint was made in. seconds: that its steps have taken."""

    steps: int
    seconds: float

    def plain(self) -> dict[str, float]:
        return {"steps": self.steps, "seconds": self.seconds}


BEGUN = TypeAdapter(Begun)


@dataclass(frozen=True)
class Checkpoint:
    """Tensors after an epoch, in families; history: metrics of every epoch so far.

    Families are `model`; `deployed`, the model's state to validate by and deploy where that is
    another one; `optimizer:KIND`; `warm` (`fmoe.training.warm_start`); `after:KIND`
    (`fmoe.after_step`); of one that was made inside of an epoch also `rank:0` and so on, what each
    worker that shares images has of its own.
    epoch: the last that is done; -1: none. begun: how far the one after it is.
    adopted: it comes from a training whose settings may differ (PBT).
    """

    epoch: int
    families: Mapping[str, Tensors]
    history: list[dict[str, float]]
    adopted: bool = False
    begun: Begun | None = None

    @property
    def model(self) -> Tensors:
        return self.families[MODEL]

    @property
    def deployed(self) -> Tensors:
        """The model's state that validation chose after this epoch."""
        return self.families.get(DEPLOYED, self.model)


def family(part: str, kind: str) -> str:
    """The family of what another kind keeps in another form."""
    name = f"{part}:{kind}"
    assert FAMILY.fullmatch(name), name
    return name


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one phase in a folder. key: hash of what they belong to.

    like: the state that their model must have (on any device); None for whatever there is.
    """

    folder: Folder
    key: str
    like: Mapping[str, Tensor] | None = None

    def save(self, checkpoint: Checkpoint, best_epoch: int) -> None:
        """After an epoch: in the place of those inside of it, and of older ones."""
        self._committing(checkpoint)(self._folder(checkpoint.epoch))
        keep = {checkpoint.epoch, checkpoint.epoch - 1, best_epoch}
        for epoch in self.epochs():
            if epoch not in keep and epoch < checkpoint.epoch:
                self._folder(epoch).delete()
        for epoch, steps in self.inside():
            if epoch <= checkpoint.epoch:
                self._folder(epoch, steps).delete()

    def inside_writer(self, checkpoint: Checkpoint) -> Callable[[], None]:
        """What writes a checkpoint inside of an epoch, beside the last one before it.

        It may be called in another thread: tensors are bytes by then. Of a second thread that
        calls torch OpenMP makes a second team, and every loop of the first is slower from then on.
        """
        assert checkpoint.begun is not None
        here, commit = (checkpoint.epoch + 1, checkpoint.begun.steps), self._committing(checkpoint)

        def write() -> None:
            commit(self._folder(*here))
            older = [place for place in self.inside() if place < here]
            for place in older[:-1]:
                self._folder(*place).delete()

        return write

    def _committing(self, checkpoint: Checkpoint) -> Callable[[Folder], None]:
        """What commits it to a folder."""
        families = checkpoint.families
        assert all(FAMILY.fullmatch(family) for family in families), list(families)
        tensors = {f"{family}.{n}": t for family, part in families.items() for n, t in part.items()}
        manifest = {
            "format": CHECKPOINT_FORMAT,
            "key": self.key,
            "epoch": checkpoint.epoch,
            "families": sorted(families),
            "adopted": checkpoint.adopted,
            "history": checkpoint.history,
            "begun": checkpoint.begun and checkpoint.begun.plain(),
        }
        packed = pack(tensors)
        return lambda folder: folder.commit({STATE: packed}, manifest)

    def latest(self) -> Checkpoint | None:
        """The newest after an epoch that is whole; None where there is none. Raises `UserError` for
        another's."""
        for epoch in reversed(self.epochs()):
            try:
                return self.load(epoch)
            except Damaged:
                continue
        return None

    def latest_inside(self, done: int) -> Checkpoint | None:
        """The newest that is whole of the epoch after the last that is `done` (-1: the first)."""
        for epoch, steps in reversed(self.inside()):
            if epoch == done + 1:
                try:
                    return self.load_inside(done, steps)
                except Damaged:
                    continue
        return None

    def load_inside(self, done: int, steps: int) -> Checkpoint:
        """Of the epoch after the last that is `done`. Raises as `load`."""
        return self._load(self._folder(done + 1, steps), done)

    def load(self, epoch: int) -> Checkpoint:
        """Raises `Damaged`, or `UserError` where it belongs to other settings."""
        return self._load(self._folder(epoch), epoch)

    def _load(self, folder: Folder, epoch: int) -> Checkpoint:
        manifest = folder.manifest()
        if manifest is None:
            raise Damaged(f"{folder.uri}: no {MANIFEST}")
        if manifest.get("key") != self.key:
            raise UserError(
                f"{folder.uri}: belongs to other settings, other data or another version of fmoe; "
                "give another --name"
            )
        if manifest.get("format") != CHECKPOINT_FORMAT:
            raise UserError(
                f"{folder.uri}: a checkpoint of another version of fmoe (0.1.0 kept an optimizer's "
                "momentum alone); give another --name"
            )
        try:
            history = HISTORY.validate_python(manifest.get("history"), strict=True)
            names = FAMILIES.validate_python(manifest.get("families"), strict=True)
            given = manifest.get("begun")
            begun = None if given is None else BEGUN.validate_python(given)
        except ValidationError:
            raise Damaged(f"{folder.uri}/{MANIFEST}: holds no history or no families") from None
        try:
            header = read_header(folder, STATE)
        except FileNotFoundError:
            raise Damaged(f"{folder.uri}/{STATE}: missing") from None
        self._check(header, names)
        families: dict[str, Tensors] = {name: {} for name in names}
        for name, tensor in unpack(
            folder.committed(STATE, manifest, header.size), header.source
        ).items():
            family, _, rest = name.partition(".")
            families[family][rest] = tensor
        return Checkpoint(epoch, families, history, manifest.get("adopted") is True, begun)

    def _check(self, header: Header, families: list[str]) -> None:
        """Raises `Damaged` for a tensor that belongs to none of the families, or to no parameter of
        the model that this must be."""
        unknown = [name for name in families if not FAMILY.fullmatch(name)]
        for name in header.tensors:
            family, _, rest = name.partition(".")
            parameter = rest.rpartition("/")[0] if family.startswith("optimizer:") else None
            of_none = parameter is not None and self.like is not None and parameter not in self.like
            if family not in families or of_none:
                unknown.append(name)
        if unknown or MODEL not in families:
            name = unknown[0][:100] if unknown else f"no {MODEL}"
            raise Damaged(f"{header.source}: does not fit: {name} is none of the model's")
        for family in (MODEL, DEPLOYED):
            if family in families and self.like is not None:
                header.require(self.like, f"{family}.")

    def _folder(self, epoch: int, steps: int | None = None) -> Folder:
        inside = "" if steps is None else f"-step-{steps:06d}"
        return self.folder / f"epoch-{epoch:04d}{inside}"

    def inside(self) -> list[tuple[int, int]]:
        """Epochs and steps inside of which there are checkpoints, in order."""
        matches = (STEP.fullmatch(name) for name in self.folder.names())
        return sorted((int(name[1]), int(name[2])) for name in matches if name)

    def newest(self) -> tuple[int, int]:
        """Epochs that are done, and steps of the one after them, in what was kept last."""
        return max([(0, 0), *((epoch + 1, 0) for epoch in self.epochs()), *self.inside()])

    def epochs(self) -> list[int]:
        """After which there are checkpoints, in order."""
        matches = (EPOCH.fullmatch(name) for name in self.folder.names())
        return sorted(int(name[1]) for name in matches if name)


def copied(tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors as they are now, on the CPU."""
    return {name: t.detach().cpu().clone() for name, t in tensors.items()}


def copy_state(module: nn.Module) -> Tensors:
    """The module's tensors as they are now, on the CPU."""
    return copied(module.state_dict())
