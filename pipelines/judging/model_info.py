"""An evaluation in the form of RobustBench's `model_info/DATA/THREAT/NAME.json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from fmoe.errors import UserError
from fmoe.storage.folder import Folder

ATTACK = "autoattack"


def check(attacks: Iterable[str], file: Path) -> None:
    """Raises `UserError` where the form could not be filled."""
    if ATTACK not in [attack.strip() for attack in attacks]:
        raise UserError(f"--robustbench-json {file}: the board's figure is {ATTACK}'s: run it, too")


def model_info(answer: Mapping[str, Any]) -> dict[str, Any]:
    """answer: of `fmoe evaluate --json`. What it does not know is an empty text to be filled."""
    robust = answer["robust"][ATTACK]
    worst = answer["worst_case"]
    return {
        "link": "",
        "name": answer["model"],
        "authors": "",
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": answer["data"],
        "venue": "",
        "architecture": "",
        "eps": ratio(answer["eps"], answer["norm"]),
        "clean_acc": f"{100 * answer['clean']:.2f}",
        "reported": f"{100 * robust:.2f}",
        "autoattack_acc": f"{100 * robust:.2f}",
        "external": f"{100 * worst:.2f}" if worst < robust else None,
        "footnote": (
            f"{answer['images']} of {answer['test_images']} test images; fmoe's protocol "
            f"{answer['protocol']}, seed {answer['seed']}"
            + "".join(f"; flag: {flag}" for flag in answer["flags"])
        ),
        "unreliable": bool(answer["flags"]),
    }


def ratio(eps: float, norm: str) -> str:
    """`8/255` for a linf eps of 255ths, else the number."""
    steps = Fraction(eps * 255).limit_denominator(1000)
    if norm == "linf" and steps > 0 and steps.denominator == 1 and abs(eps * 255 - steps) < 1e-6:
        return f"{steps.numerator}/255"
    return f"{eps:g}"


def write(file: Path, answer: Mapping[str, Any]) -> None:
    try:
        Folder.at(file.parent).write_json(file.name, model_info(answer))
    except OSError as error:
        raise UserError(
            f"--robustbench-json {file}: cannot be written ({error.strerror})"
        ) from None
