"""What every command ends with: mistakes as one line and exit code 2, whoever started it."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

import fmoe
from fmoe.errors import NonFiniteLoss, TrainingFailed, UserError, first_line
from pipelines import user
from pipelines.output import PlainFormatter, show

Command = Callable[..., None] | typer.Typer
"""A function, or a group of them."""

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM


def _version(show: bool) -> None:
    if show:
        print(f"fmoe {fmoe.__version__}")
        raise typer.Exit


def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print and exit.")
    ] = False,
) -> None:
    """Adversarially robust mixtures of experts (Divided We Fall) on Ray and MLflow."""


def application(*, completes: bool = False, **settings: Any) -> typer.Typer:
    """`fmoe` without commands. completes: with --install-completion."""
    app = typer.Typer(
        name="fmoe",
        no_args_is_help=True,
        add_completion=completes,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )
    app.callback()(root)
    return app


def mount(app: typer.Typer, name: str, command: Command) -> None:
    """A group as it is, a function as a command; `submit` passes on what it does not know."""
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=name)
        return
    passes_on = name == "submit"
    settings = {"allow_extra_args": passes_on, "ignore_unknown_options": passes_on}
    app.command(name, context_settings=settings)(command)


def alone(name: str, command: Command) -> None:
    """What `python -m pipelines.NAME` runs: the same as `fmoe NAME`."""
    app = application()
    mount(app, name, command)
    run(app, [name, *sys.argv[1:]])


def run(app: typer.Typer, arguments: Sequence[str] | None = None) -> NoReturn:
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
        # typer keeps the class to itself
        if context and type(error).__name__ == "NoArgsIsHelpError":
            print(context.get_help(), file=sys.stderr)
            sys.exit(2)
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
