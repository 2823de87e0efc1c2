"""What an evaluation consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fmoe.errors import UserError

PROTOCOL = 4
"""Raised whenever a change could move a figure."""

STANDARD = ("fgsm", "pgd", "pgd50", "autoattack")
MIXTURE = (
    "gate-only", "frozen-gate", "surrogate", "reweighted", "transfer", "saturation",
)  # fmt: skip
SWEEPS = ("steps", "radius")
GROUPS = {"mixture": MIXTURE, "sweeps": SWEEPS}
LEAST_FOR_DLR = 4
"""Classes: the targeted DLR loss divides by the distance to the third and fourth largest logit."""
FULL = (*STANDARD, *GROUPS)
"""What promotion asks for."""


@dataclass(frozen=True)
class Settings:
    """attacks: names of `STANDARD`, `MIXTURE`, `SWEEPS` or of a group (`mixture`, `sweeps`).

    eps in pixels of [0,1]; batch_size images are one chunk. experts: names of a mixture's, for the
    tables. selected_on: the split by which the model was chosen. collapse_stops: whether a
    collapsed gate is a flag, or just a note. fast: attacks run on a folded copy (`fmoe.folding`);
    what breaks it must break the model itself to count.
    """

    attacks: tuple[str, ...]
    eps: float
    batch_size: int = 250
    seed: int = 0
    experts: tuple[str, ...] = ()
    selected_on: Literal["validation", "test"] | None = None
    collapse_stops: bool = True
    fast: bool = False

    def __post_init__(self) -> None:
        """Raises `UserError`, which names the argument."""
        _check_eps(self.eps)
        whole("batch_size", self.batch_size, least=1)
        whole("seed", self.seed)
        if self.selected_on not in (None, "validation", "test"):
            raise UserError(
                f"selected_on: {self.selected_on!r}; expected 'validation', 'test' or None"
            )
        known = (*STANDARD, *MIXTURE, *SWEEPS, *GROUPS)
        for name in self.attacks:
            if name not in known:
                raise UserError(f"unknown attack {name!r} (there are: {', '.join(known)})")

    @property
    def stages(self) -> tuple[str, ...]:
        """In the order in which they run: cheap attacks first, since an image that is broken is
        not attacked by the dear ones."""
        wanted = expand(self.attacks)
        return tuple(name for name in (*STANDARD[:3], *MIXTURE, "autoattack", *SWEEPS)
                     if name in wanted)  # fmt: skip


def _check_eps(eps: object) -> None:
    if isinstance(eps, bool) or not isinstance(eps, float | int) or not 0 <= eps <= 1:
        raise UserError(
            f"eps: {eps!r}; expected a number in [0, 1] (pixels of [0,1], such as 8 / 255)"
        )


def whole(name: str, value: object, *, least: int = -(2**63)) -> None:
    """Raises `UserError` for anything but a Python int of 64 bits from `least` on."""
    if type(value) is not int or not least <= value < 2**63:
        what = "a whole number" if least < 0 else f"a whole number from {least} on"
        raise UserError(f"{name}: {value!r}; expected {what}")


def expand(names: Sequence[str]) -> set[str]:
    return {stage for name in names for stage in GROUPS.get(name, (name,))}
