"""`fmoe doctor`: whether this machine can train, and what would mend what cannot."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from pipelines.options import Json
from pipelines.output import result, say


def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Do not start Ray for a moment.")] = False,
    json: Json = False,
) -> None:
    """Look at this machine: versions, processors, limits, disks, stores, Ray.

    A line each, with the remedy where one is needed. `note` is what works but for something,
    `fault` what would end a run; with one the exit code is 1. Nothing is left behind.

    \b
    fmoe doctor
    RAY_ADDRESS=auto fmoe doctor
    FMOE_STORAGE=s3://bucket/fmoe fmoe doctor --quick --json
    """
    from pipelines.health import ALL, QUICK, State, findings

    faults = 0
    with result(json) as answer:
        answer["findings"] = told = []
        for each in findings(QUICK if quick else ALL):
            told.append(asdict(each))
            faults += each.state is State.FAULT
            say(json, f"{each.state:<5}  {each.name:<13}  {each.text}")
            if each.remedy:
                say(json, f"{'':<22}{each.remedy}")
        answer["faults"] = faults
    say(json, "this machine is ready" if not faults else f"{faults} to mend before a run")
    if faults:
        raise typer.Exit(1)


if __name__ == "__main__":
    from pipelines.entry import alone

    alone("doctor", doctor)
