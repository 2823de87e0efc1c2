"""Phase one: pre-trained experts in a content-addressed store.

The key is the hash of everything that decides an expert's weights, so a run or a Tune trial asks
for its experts by configuration and trains only those that are not there. A half-written expert
has no manifest and is never read; two processes that ask at once train it once
(`fmoe.storage.lease`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from fmoe import assembly
from fmoe.config import Config, Member, fingerprint
from fmoe.data import Images, TrainingData
from fmoe.data.facts import Identity
from fmoe.model_folder import WEIGHTS
from fmoe.numerics.draw import Draw
from fmoe.numerics.worker import Worker
from fmoe.storage.checkpoint import Checkpoints
from fmoe.storage.folder import MANIFEST, Damaged, Folder
from fmoe.storage.lease import Held, exclusive
from fmoe.storage.tensors import Tensors, pack, read_header, unpack
from fmoe.training.loop import Epoch, Training, epochs
from fmoe.training.trainer import Progress
from fmoe.version import VERSION

OF_LATER_PHASES = ("gate", "mixing", "confidence", "joint", "evaluate")
"""Parts of a configuration that begin where an expert is finished."""


@dataclass(frozen=True)
class ExpertStore:
    folder: Folder

    def obtain(
        self,
        config: Config,
        member: Member,
        data: TrainingData[Images],
        *,
        worker: Worker | None = None,
        progress: Progress | None = None,
        on_epoch: Callable[[Epoch], None] | None = None,
        wait: bool = True,
    ) -> dict[str, Any]:
        """Trains the expert unless it is there; gives its manifest with `trained` added.

        An interrupted training goes on from its newest checkpoint. Raises `NonFiniteLoss`, and
        `Held` where another process is training it and `wait` is off.
        """
        key = expert_key(config, member, data.identity)
        like = assembly.expert_state(config, member, data.facts)
        manifest = self.find(key, like)
        if manifest:
            return {**manifest, "trained": False}
        with exclusive(self.folder, key, wait=wait):
            manifest = self.find(key, like)
            if manifest:
                return {**manifest, "trained": False}
            return {
                **self._train(key, config, member, data, worker, progress, on_epoch),
                "trained": True,
            }

    def obtain_all(
        self,
        config: Config,
        data: TrainingData[Images],
        *,
        worker: Worker | None = None,
        on_epoch: Callable[[Member, Epoch], None] | None = None,
    ) -> list[dict[str, Any]]:
        """The manifests of all that are trained apart, in order, trained one after another.

        Those that another process is training at the time come last.
        """
        manifests: dict[Member, dict[str, Any]] = {}
        for wait in (False, True):
            for member in config.experts.pretrained:
                if member in manifests:
                    continue
                report = partial(on_epoch, member) if on_epoch else None
                with contextlib.suppress(Held):
                    manifests[member] = self.obtain(
                        config, member, data, worker=worker, on_epoch=report, wait=wait
                    )
        return [manifests[member] for member in config.experts.pretrained]

    def find(self, key: str, like: Mapping[str, Tensor] | None = None) -> dict[str, Any] | None:
        """The manifest of a finished expert whose weights are whole, or None."""
        try:
            return self._read(key, like)[0]
        except Damaged:
            return None

    def weights(self, key: str, like: Mapping[str, Tensor] | None = None) -> Tensors:
        """like: the state that an expert must have. Raises `Damaged` where the expert is not there
        or not whole."""
        return self._read(key, like)[1]

    def _read(self, key: str, like: Mapping[str, Tensor] | None) -> tuple[dict[str, Any], Tensors]:
        folder = self.folder / key
        manifest = folder.manifest()
        if manifest is None:
            raise Damaged(f"{folder.uri}: no such expert")
        if not isinstance(manifest.get("seconds"), int | float):
            raise Damaged(f"{folder.uri}/{MANIFEST}: is no expert's")
        try:
            header = read_header(folder, WEIGHTS)
        except FileNotFoundError:
            raise Damaged(f"{folder.uri}/{WEIGHTS}: missing") from None
        if like is not None:
            header.require(like)
        data = folder.committed(WEIGHTS, manifest, header.size)
        return manifest, unpack(data, header.source)

    def _train(
        self,
        key: str,
        config: Config,
        member: Member,
        data: TrainingData[Images],
        worker: Worker | None,
        progress: Progress | None,
        on_epoch: Callable[[Epoch], None] | None,
    ) -> dict[str, Any]:
        role, index = member
        start, seed = time.perf_counter(), expert_seed(config, member)
        like = assembly.expert_state(config, member, data.facts)
        checkpoints = Checkpoints(self.folder / key / "epochs", key, like)
        history, best = [], 0
        for epoch in epochs(
            assembly.seeded_expert(config, member, seed, data.facts),
            Training(
                config.experts.train,
                config.experts.role_of(member).attack,
                data.train,
                data.val,
                config.data.augment,
                seed,
                config.numerics,
            ),
            checkpoints=checkpoints,
            worker=worker,
            progress=progress,
            minutes=config.checkpoint.minutes,
        ):
            history.append(epoch.metrics)
            best = epoch.best
            if on_epoch:
                on_epoch(epoch)
        manifest = {
            "key": key,
            "role": role,
            "index": index,
            "settings": expert_settings(config, member, data.identity),
            "history": history,
            "best_epoch": best,
            "seconds": time.perf_counter() - start,
        }
        try:
            weights = checkpoints.load(best).deployed
        except Damaged:  # the best epoch's file, while the newest is whole
            checkpoints.folder.delete()
            return self._train(key, config, member, data, worker, progress, on_epoch)
        (self.folder / key).commit({WEIGHTS: pack(weights)}, manifest)
        checkpoints.folder.delete()
        committed = (self.folder / key).manifest()
        assert committed is not None
        return committed


def expert_seed(config: Config, member: Member) -> int:
    """Its own for each (run seed, role, index): other roles' counts do not change it."""
    return Draw(config.seed, *member).seed % 2**31


def expert_settings(config: Config, member: Member, data: Identity) -> dict[str, Any]:
    """What decides the weights: everything, but for what comes after an expert's training
    (`OF_LATER_PHASES`) and the other experts. A search over counts shares its experts."""
    role, index = member
    tree = {key: part for key, part in config.deciding().items() if key not in OF_LATER_PHASES}
    own = config.experts.role_of(member).model_dump(mode="json", exclude={"count", "backbone"})
    # whether the backbone is the role's own or the one of all roles makes no difference
    backbone = config.experts.backbone_of(role).model_dump(mode="json")
    tree["experts"] = {"backbone": backbone, "train": tree["experts"]["train"]}
    return {
        "format": 2,
        "fmoe": VERSION,
        "config": tree,
        "role": {"name": role, "index": index, **own},
        "seed": expert_seed(config, member),
        "data": data.plain(),
    }


def expert_key(config: Config, member: Member, data: Identity) -> str:
    return fingerprint(expert_settings(config, member, data))[:32]
