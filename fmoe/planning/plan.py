"""The plan of a run: hours of its phases, memory, traffic, and the best way to share it out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from fmoe.config import Config, Joint, Member, Phase
from fmoe.cpus import usable_cpus
from fmoe.data.facts import Facts
from fmoe.errors import UserError
from fmoe.planning import memory, passes, traffic
from fmoe.planning.machines import LATENCY, Machine
from fmoe.planning.passes import Passes
from fmoe.planning.traffic import Traffic
from fmoe.planning.work import Work, of_expert, parts
from fmoe.training.validation import validation_attacks

HOUR = 3600.0  # seconds
USABLE = 0.9
"""Of a device's memory: the rest is its libraries'."""
EVALUATED = {"fgsm": Passes(1, 1), "pgd": Passes(20, 1)}
"""Attacks of the evaluation that are counted: others attack what these leave, in many ways."""


@dataclass(frozen=True)
class Counts:
    """How many there are to train on, to validate on, and to be judged on."""

    train: int
    val: int
    test: int


@dataclass(frozen=True)
class Reached:
    """Shares of a machine's peak."""

    crafting: float
    training: float
    judging: float


@dataclass(frozen=True)
class Setting:
    """Where a run is planned. speed: bytes a second between two workers. reached: by phase
    (`experts`, `joint`), where it was measured."""

    machine: Machine
    workers: int
    speed: float
    reached: Mapping[str, Reached] = field(default_factory=dict)

    def reaching(self, phase: str) -> Reached:
        share = self.machine.reached
        return self.reached.get(phase, Reached(share, share, share))


@dataclass(frozen=True)
class Way:
    """One way to share the joint phase out. seconds: a step, `exchange` of them for what workers
    send each other."""

    data: int
    expert: int
    seconds: float
    exchange: float
    hours: float
    memory_bytes: float
    bytes_per_step: float
    fits: bool


@dataclass(frozen=True)
class Plan:
    hours: dict[str, float]
    ways: list[Way]
    best: Way
    operations: dict[str, float]
    not_counted: list[str]

    @property
    def total(self) -> float:
        return sum(self.hours.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "hours": self.total,
            "hours_by_phase": self.hours,
            "memory_bytes": round(self.best.memory_bytes),
            "bytes_per_step": round(self.best.bytes_per_step),
            "parallel": {"data": self.best.data, "expert": self.best.expert},
            "ways": [vars(way) for way in self.ways],
            "operations_per_image": self.operations,
            "not_counted": self.not_counted,
        }


class Planner:
    """Of one configuration on images of one data set."""

    def __init__(self, config: Config, facts: Facts, images: Counts, setting: Setting):
        config = setting.machine.computed(config)
        self.config, self.facts, self.images, self.setting = config, facts, images, setting
        self.parts = cache(partial(parts, config, facts))
        self.of_expert = cache(partial(of_expert, config, facts))
        self.attack = passes.of_attack(config.joint.attack)
        self.loss = passes.of_loss(config.joint.loss)

    def plan(self) -> Plan:
        """Hours of each phase, with the best way to share out the joint one."""
        choices, parallel = self.ways(), self.config.parallel
        fixed = parallel != "auto" and parallel.workers == self.setting.workers
        expert = self.config.shared_by
        best = best_of([way for way in choices if not fixed or way.expert == expert])
        judged, skipped = self.evaluation()
        whole = self.parts().all
        return Plan(
            {
                "pool": self.makespan([s for _, s in self.experts()]) / HOUR,
                "joint": best.hours,
                "evaluate": judged / HOUR,
            },
            choices,
            best,
            {
                "forward": whole.forward,
                "input_gradient": whole.crafting,
                "training": whole.training,
                "parameters": whole.parameters,
            },
            skipped,
        )

    def ways(self) -> list[Way]:
        experts, workers = len(self.config.experts.members), self.setting.workers
        peers = [n for n in range(1, min(experts, workers) + 1) if workers % n == 0]
        found = [self.way(workers // n, n) for n in peers if self.possible(workers // n)]
        if not found:
            raise UserError(
                f"--gpus {workers}: joint.batch_size {self.config.joint.batch_size} leaves less "
                "than two images for each, however it is shared out"
            )
        return found

    def possible(self, groups: int) -> bool:
        """Whether each has two images of a batch: of one BatchNorm has no statistics."""
        return 2 * self.config.joint.accumulate * groups <= self.config.joint.batch_size

    def way(self, groups: int, peers: int) -> Way:
        phase = self.config.joint
        seconds, exchange, hours = self.joint(groups, peers)
        needed = memory.of_step(self.config, self.facts, peers, phase.batch_size / groups)
        needed += self.images.train * math.prod(self.facts.shape)  # a byte each
        return Way(
            data=groups,
            expert=peers,
            seconds=seconds,
            exchange=exchange,
            hours=hours,
            memory_bytes=needed,
            bytes_per_step=self.sent(groups, peers).bytes,
            fits=needed <= USABLE * self.setting.machine.memory,
        )

    def joint(self, groups: int, peers: int) -> tuple[float, float, float]:
        """Seconds of a step, those of them for what is exchanged, and hours of the joint phase."""
        phase, setting = self.config.joint, self.setting
        share = phase.batch_size / groups
        attack, loss = self.attack, self.loss
        seconds = exchanged = 0.0
        for side, epochs in sides(phase).items():
            work, sent = self.parts(side), self.sent(groups, peers, side)
            exchange = sent.seconds(setting.speed, LATENCY) if setting.workers > 1 else 0.0
            computed = self.step_seconds("joint", work.held(peers), attack, loss, phase, share)
            seconds += epochs * (computed + exchange)
            exchanged += epochs * exchange
        validated = self.validation_seconds("joint", self.parts().held(peers), phase) / groups
        steps = self.images.train // phase.batch_size
        hours = (steps * seconds + phase.epochs * validated) / HOUR
        return seconds / phase.epochs, exchanged / phase.epochs, hours

    def sent(self, groups: int, peers: int, side: int | None = None) -> Traffic:
        given = self.config, self.facts, self.parts(side)
        return traffic.of_step(*given, groups, peers, self.attack, self.loss, side)

    def step_seconds(
        self, name: str, work: Work, attack: Passes, loss: float, phase: Phase, images: float
    ) -> float:
        """Of a step on so many images of a worker, without what is exchanged."""
        again = work.forward if isinstance(phase, Joint) and phase.checkpointing else 0.0
        trained = loss * (work.training + again) * (2 if phase.awp else 1)
        crafted = attack.gradients * (work.crafting + again) + attack.forwards * work.forward
        reached, machine = self.setting.reaching(name), self.setting.machine
        computed = crafted / reached.crafting + trained / reached.training
        # a pass with a gradient starts as many again, and one with all gradients twice as many
        started = work.kernels * (attack.forwards + 2 * attack.gradients + 3 * loss)
        return max(
            images * computed / machine.peaks[self.config.precision],
            phase.accumulate * started * machine.kernel,
        )

    def validation_seconds(self, name: str, work: Work, phase: Phase) -> float:
        """Of an epoch's validation by one worker."""
        count = min(phase.validation.images or self.images.val, self.images.val)
        attack = phase.validation.attack
        judged = validation_attacks(phase, attack).values()
        total = sum((passes.of_attack(one) + Passes(0, 1) for one in judged), Passes())
        return (1 + len(phase.following)) * count * self.judging_seconds(name, work, total)

    def judging_seconds(self, name: str, work: Work, of: Passes) -> float:
        """Of an image, in float32."""
        operations = of.gradients * work.crafting + of.forwards * work.forward
        peak = self.setting.machine.peaks["float32"]
        return operations / (self.setting.reaching(name).judging * peak)

    def experts(self) -> list[tuple[Member, float]]:
        """Seconds of each that is trained apart."""
        phase, members = self.config.experts.train, self.config.experts.pretrained
        return [(member, self.expert_seconds(member[0], phase)) for member in members]

    def expert_seconds(self, role: str, phase: Phase) -> float:
        attack = passes.of_attack(self.config.experts.role_of((role, 0)).attack)
        loss, seconds = passes.of_loss(phase.loss), 0.0
        for side, epochs in sides(phase).items():
            given = self.of_expert(role, side), attack, loss, phase, phase.batch_size
            steps = self.images.train // phase.batch_size
            seconds += epochs * steps * self.step_seconds("experts", *given)
        validated = self.validation_seconds("experts", self.of_expert(role), phase)
        return seconds + phase.epochs * validated

    def makespan(self, seconds: Sequence[float]) -> float:
        """Of experts, each trained by one worker, the longest first. On CPUs each has one of this
        machine's."""
        of_cpus = self.setting.machine.name == "cpu"
        busy = [0.0] * (usable_cpus() if of_cpus else self.setting.workers)
        for one in sorted(seconds, reverse=True):
            busy[busy.index(min(busy))] += one
        return max(busy)

    def evaluation(self) -> tuple[float, list[str]]:
        """Seconds of the test, of the best epoch and of the last; attacks that are not counted."""
        wanted = self.config.evaluate.attacks
        total = sum((EVALUATED[name] for name in wanted if name in EVALUATED), Passes(0, 1))
        count = min(self.config.evaluate.images or self.images.test, self.images.test)
        seconds = self.judging_seconds("joint", self.parts().all, total)
        skipped = [name for name in wanted if name not in EVALUATED]
        return 2 * count * seconds / self.setting.workers, skipped


def best_of(choices: Sequence[Way]) -> Way:
    """The fastest that fits into memory; where none does, the one that needs the least."""
    fitting = [way for way in choices if way.fits]
    if not fitting:
        return min(choices, key=lambda way: way.memory_bytes)
    return min(fitting, key=lambda way: way.hours)


def sides(phase: Phase) -> dict[int | None, int]:
    """Epochs by the size of images; None: as they are."""
    if not phase.sizes:
        return {None: phase.epochs}
    last = len(phase.sizes) - 1
    return dict(Counter(phase.sizes[min(epoch, last)] for epoch in range(phase.epochs)))
