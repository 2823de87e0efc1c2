"""Phase two: the mixture of pre-trained experts and a new gate, trained together."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fmoe import assembly
from fmoe.config import ORIGIN, Config, fingerprint
from fmoe.data import Images, TrainingData
from fmoe.data.facts import Identity
from fmoe.errors import UserError
from fmoe.models.mixture import Mixture
from fmoe.numerics.shared_experts import ALONE, SharedExperts
from fmoe.numerics.worker import Worker
from fmoe.storage.checkpoint import Checkpoints
from fmoe.storage.folder import Damaged, Folder
from fmoe.training.calibration import Fitting, deployed
from fmoe.training.expert_store import ExpertStore, expert_key
from fmoe.training.keeping import Notice, never
from fmoe.training.loop import Epoch, Training, epochs
from fmoe.training.selection import best_epoch
from fmoe.training.trainer import Progress
from fmoe.version import VERSION


def joint_key(config: Config, data: Identity) -> str:
    """Hash of everything that decides the joint phase's numbers, but for the number of workers."""
    tree = config.deciding()
    del tree["evaluate"]
    return fingerprint({"fmoe": VERSION, "config": tree, "data": data.plain()})[:32]


def checkpoints(run: Folder, config: Config, data: Identity) -> Checkpoints:
    like = assembly.mixture_state(config, data.facts)
    return Checkpoints(run / "joint", joint_key(config, data), like)


def initial(
    config: Config, store: ExpertStore, data: Identity, shared: SharedExperts = ALONE
) -> Mixture:
    """The mixture before the joint phase, with what is trained apart from the store; shared: of
    the experts those that this worker holds."""
    model = assembly.seeded_mixture(config, data.facts)
    held = shared.held(model.count)
    for place, member in enumerate(config.experts.pretrained):
        if member != ORIGIN and place not in held:
            continue
        like = assembly.expert_state(config, member, data.facts)
        state = store.weights(expert_key(config, member, data), like)
        if member == ORIGIN:
            assembly.fork(model, state)
        else:
            model.experts[place].load_state_dict(state)
    model.hold(shared)
    return model


def joint_epochs(
    config: Config,
    data: TrainingData[Images],
    store: ExpertStore,
    run: Folder,
    *,
    worker: Worker | None = None,
    progress: Progress | None = None,
    notice: Notice = never,
) -> Iterator[Epoch]:
    """The joint phase's epochs; checkpoints go to `run`/joint and are resumed from there. notice:
    whether this worker has been told that it will end."""
    worker = worker or Worker()
    sent = torch.bfloat16 if config.coarse_gradients else None
    shared = SharedExperts(worker.peers, sent)
    yield from epochs(
        initial(config, store, data.identity, shared),
        Training(
            config.joint,
            config.joint.attack,
            data.train,
            data.val,
            config.data.augment,
            config.seed,
            config.numerics,
            Fitting.of(config, config.joint.calibrate) if config.joint.calibrate else None,
        ),
        checkpoints=checkpoints(run, config, data.identity),
        worker=worker,
        progress=progress,
        minutes=config.checkpoint.minutes,
        notice=notice,
    )


def trained(config: Config, run: Folder, data: Identity, epoch: int) -> Mixture:
    """The mixture that an epoch which is kept would deploy; its configuration: `deployed`."""
    try:
        kept = checkpoints(run, config, data).load(epoch)
    except Damaged as error:
        raise UserError(f"{error}: delete {run.uri}/joint and train again") from None
    model = assembly.mixture(deployed(config, kept.history[epoch]), data.facts)
    model.load_state_dict(kept.deployed)
    return model.eval()


def best(config: Config, history: list[dict[str, float]]) -> int:
    """The epoch that selection chose, by validation."""
    return best_epoch(history, config.joint.attack)
