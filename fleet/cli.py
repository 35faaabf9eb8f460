"""The ``edgefleet`` command: finds its parts among what is installed, and ends with a documented exit code.

Exit codes: 0 done, 1 a fault of ours, 2 wrong use, 3 a task or its data cannot be used, 4 an extra is missing,
5 the network failed, 6 a signature or a date does not hold, 7 a reply was refused, 8 no privacy budget is left,
9 stored state was altered, 130 interrupted.
"""

import logging
import os
import signal
import sys
from importlib.metadata import entry_points, version
from typing import Annotated

import click
import typer

from fleet.errors import FleetError, UsageError

NAME = "edgefleet"
COMMANDS = "edgefleet.commands"
INTERRUPTED = 130

app = typer.Typer(
    name=NAME,
    help="Federated learning for fleets of edge devices: private updates go up, signed releases come down.",
    epilog="Exit codes: 0 done, 1 our fault, 2 wrong use, 3 task or data, 4 missing extra, 5 network, 6 trust, "
    "7 refused, 8 no budget, 9 altered state, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
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


class Interrupt:
    """Remembers Ctrl-C: a library may turn the exception into one of its own."""

    def __init__(self) -> None:
        self.seen = False
        signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        self.seen = True
        raise KeyboardInterrupt


def main() -> None:
    """Run the command line; a known error is one line."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # Flower phones home otherwise
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # OpenMP spins on a busy machine otherwise
    interrupt = Interrupt()
    for command in entry_points(group=COMMANDS):
        app.command(command.name)(command.load())
    try:
        code = app(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(UsageError.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _end(f"{NAME}: interrupted", INTERRUPTED)
    except FleetError as error:
        if interrupt.seen:
            _end(f"{NAME}: interrupted", INTERRUPTED)
        if logging.getLogger().isEnabledFor(logging.INFO):
            raise
        _end(f"{NAME}: {error}", error.exit_code)
    if interrupt.seen:
        _end(f"{NAME}: interrupted", INTERRUPTED)
    sys.exit(code or 0)


def _end(line: str, code: int) -> None:
    typer.echo(line, err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
