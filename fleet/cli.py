"""The ``edgefleet`` command: finds its parts among what is installed, and ends with a documented exit code.

Exit codes: 0 done, 1 a fault of ours, no room on the disk or nobody reads the output, 2 wrong use, 3 a task or its
data cannot be used, 4 an extra is missing, 5 the network failed, 6 a signature or a date does not hold, 7 a reply
was refused, 8 no privacy budget is left, 9 stored state was altered, 130 interrupted.
"""

import logging
import os
import sys
from collections.abc import Callable
from importlib.metadata import entry_points, version
from typing import Annotated

import click
import typer

from fleet.__main__ import NAME
from fleet.durable import is_damaged, is_full
from fleet.errors import FleetError, StoreError, TamperedError, UsageError

COMMANDS = "edgefleet.commands"

app = typer.Typer(
    name=NAME,
    help="Federated learning for fleets of edge devices: private updates go up, signed releases come down.",
    epilog="Exit codes: 0 done, 1 our fault or no room, 2 wrong use, 3 task or data, 4 missing extra, 5 network, "
    "6 trust, 7 refused, 8 no budget, 9 altered state, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    suggest_commands=False,  # Click suggests one, too
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgefleet {version('edgefleet')}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens; show where errors rise.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, format="%(levelname)s %(name)s: %(message)s")


def run(interrupted: Callable[[], bool]) -> int:
    """Run the command line and return its exit code; a known error is one line.

    Args:
        interrupted: Whether Ctrl-C was seen: a library may have turned its exception into one of its own.
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # Flower phones home otherwise
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # OpenMP spins on a busy machine otherwise
    for command in entry_points(group=COMMANDS):
        _add(command.name, command.load())
    try:
        return app(prog_name=NAME, standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return UsageError.exit_code
    except click.ClickException as error:
        typer.echo(f"{NAME}: {_in_one_line(error)}", err=True)
        return UsageError.exit_code
    except click.Abort as error:
        raise KeyboardInterrupt from error
    except Exception as error:
        known = _known(error)
        if known and interrupted():
            raise KeyboardInterrupt from error
        if known is None or logging.getLogger().isEnabledFor(logging.INFO):
            raise
        typer.echo(f"{NAME}: {known}", err=True)
        _drop_unwritten()
        return known.exit_code


def _drop_unwritten() -> None:
    """Output that found no room would be tried again at the end, and fail again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _known(error: Exception) -> FleetError | None:
    """What a person can do something about, in our words; None for a fault of ours."""
    if isinstance(error, FleetError):
        return error
    if is_full(error):
        return StoreError(f"no room is left to write to: {error}")
    if is_damaged(error):
        return TamperedError(f"a database that this command opened was altered or is damaged: {error}")
    return None


def _in_one_line(error: click.ClickException) -> str:
    said = " ".join(error.format_message().split())
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{said} Try '{context.command_path} --help'." if context else said


def _add(name: str, command: typer.Typer | Callable[..., None]) -> None:
    """A function is a command, a ``Typer`` is a group of them."""
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=name)
    else:
        app.command(name)(command)
