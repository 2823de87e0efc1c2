"""The `fmoe` command: mounts every pipeline and turns mistakes into one line and exit code 2."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, NoReturn

import typer

import fmoe
from fmoe.errors import NonFiniteLoss, TrainingFailed, UserError, first_line
from pipelines import (
    compare,
    data,
    evaluate,
    jobs,
    models,
    predict,
    promote,
    pull,
    runs,
    studies,
    submit,
    train,
    tune,
    user,
)
from pipelines.output import PlainFormatter, show

app = typer.Typer(
    name="fmoe",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Adversarially robust mixtures of experts: train, evaluate, register, pull, predict.",
    epilog="Start with `fmoe train digits`; `fmoe COMMAND --help` shows examples.",
)
app.add_typer(data.app, name="data")
app.command("train")(train.train)
app.command("tune")(tune.tune)
app.add_typer(studies.app, name="studies")
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("promote")(promote.promote)
app.add_typer(models.app, name="models")
app.command("pull")(pull.pull)
app.command("predict")(predict.predict)
app.command("submit", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    submit.submit
)
app.add_typer(jobs.app, name="jobs")
app.add_typer(runs.app, name="runs")


def _version(show: bool) -> None:
    if show:
        print(f"fmoe {fmoe.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print and exit.")
    ] = False,
) -> None:
    """Adversarially robust mixtures of experts (Divided We Fall) on Ray and MLflow."""


INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; exits 0, 2 for a user's mistake, 1 for a failed run."""
    terminated = False

    def terminate(_signum: int, _frame: FrameType | None) -> NoReturn:
        # so that `finally` runs: an MLflow run must not be left RUNNING
        nonlocal terminated
        terminated = True
        raise SystemExit(TERMINATED)

    signal.signal(signal.SIGTERM, terminate)
    user.named()
    if logging.lastResort is not None:  # what writes warnings to stderr where nothing else does
        logging.lastResort.setFormatter(PlainFormatter())
    command = typer.main.get_command(app)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = command.main(given, prog_name="fmoe", standalone_mode=False) or 0
        if code == INTERRUPTED:  # typer makes it of a KeyboardInterrupt, and says nothing
            raise KeyboardInterrupt
        sys.exit(code)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context else ""
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        _fail(" ".join(message.split()).rstrip(".") + hint, 2)
    except UserError as error:
        _fail(str(error), 2)
    except OSError as error:  # a disk, a store or a bucket that cannot be read or written
        _fail(first_line(error), 1)
    except (NonFiniteLoss, TrainingFailed) as error:
        _fail(" ".join(f"training stopped: {error}".split()), 1)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; the same command goes on from the last finished epoch", INTERRUPTED)
    except SystemExit as end:
        # a wait inside Ray makes SystemExit(1) of ours
        sys.exit(TERMINATED if terminated else end.code)


def _fail(message: str, code: int) -> NoReturn:
    show(f"fmoe: {message}", error=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
