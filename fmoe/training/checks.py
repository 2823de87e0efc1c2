"""What a phase of training is refused for before it begins."""

from __future__ import annotations

from fmoe.attacks import Attack
from fmoe.config import Config, Phase
from fmoe.data.batches import check_size
from fmoe.data.splits import Images
from fmoe.data.streamed import Streamed
from fmoe.errors import UserError
from fmoe.training.validation import validation_attacks


def check_phases(config: Config, images: Images, workers: int) -> None:
    """Raises `UserError` for what a phase that is trained is refused for; workers: that share the
    joint phase's images."""
    check_batches(config.joint, len(images), workers)
    check_attack(config.joint, config.joint.attack)
    check_kept(config.joint, images)
    if config.experts.pretrained:
        check_batches(config.experts.train, len(images), 1)
        check_kept(config.experts.train, images)
        for member in config.experts.pretrained:
            check_attack(config.experts.train, config.experts.role_of(member).attack)


def check_batches(phase: Phase, images: int, workers: int) -> None:
    """Raises `UserError` for batches that cannot be made of so many images, or shared."""
    check_size(phase.batch_size, images)
    if 2 * phase.accumulate * workers > phase.batch_size:  # of one BatchNorm has no statistics
        raise UserError(
            f"accumulate: {phase.accumulate} parts on {workers} workers leave less than two images "
            f"for each of batch_size {phase.batch_size}"
        )


def check_attack(phase: Phase, attack: Attack) -> None:
    """Raises `UserError` for a training attack that the phase's other settings do not go with."""
    if phase.warm_start and not attack.knows_warm_start:
        raise UserError(f"warm_start: the attack {attack!r} knows none; set warm_start: false")
    if phase.warm_start and phase.sizes:
        raise UserError("warm_start: it keeps perturbations of one size; leave out sizes")
    validation_attacks(phase, attack)


def check_kept(phase: Phase, images: Images) -> None:
    """Raises `UserError` where a phase keeps more of every image than there is memory for."""
    if phase.warm_start and isinstance(images, Streamed):
        raise UserError(
            "warm_start: it keeps a perturbation of every image in memory; set warm_start: false, "
            "or data.stream: false"
        )
