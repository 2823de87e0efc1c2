"""The `fmoe` command: every command under its name."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines import (
    as_jobs,
    config,
    doctor,
    export,
    jobs,
    models,
    push,
    runs,
    studies,
    submit,
    ui,
)
from pipelines.entry import Command, application, mount, run

app = application(
    completes=True,
    help="Adversarially robust mixtures of experts: train, evaluate, register, pull, predict.",
    epilog="Start with `fmoe train digits`; `fmoe COMMAND --help` shows examples.",
)
COMMANDS: dict[str, Command] = {
    **as_jobs.COMMANDS,
    "config": config.app,
    "export": export.export,
    "doctor": doctor.doctor,
    "ui": ui.ui,
    "studies": studies.app,
    "models": models.app,
    "push": push.push,
    "submit": submit.submit,
    "jobs": jobs.app,
    "runs": runs.app,
}
for name, command in COMMANDS.items():
    mount(app, name, command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; exits 0, 2 for a user's mistake, 1 for a failed run."""
    run(app, arguments)


if __name__ == "__main__":
    main()
