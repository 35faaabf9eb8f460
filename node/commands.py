"""``edgefleet node``: makes this device a node of a fleet, runs it, and says how it is."""

import json
import math
import os
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fleet.errors import UsageError
from fleet.output import Format

if TYPE_CHECKING:
    from node.doctor import Finding

COMMANDS = typer.Typer(help="Make this device a node of a fleet, run it, and see how it is.", no_args_is_help=True)
Folder = Annotated[Path, typer.Option("--folder", "-f", help="The node's folder: keys, ledger, releases.")]
Formatted = Annotated[Format, typer.Option("--format", help="Lines for people, or one JSON object.")]
HERE = Path("node")


@COMMANDS.command()
def enrol(
    invitation: Annotated[str, typer.Argument(help="What 'edgefleet coordinator invite' printed; '-' reads it.")],
    folder: Folder = HERE,
    task: Annotated[
        str, typer.Option(help="The task's code on this device, path.py:NAME or module:NAME; without it, no learning.")
    ] = "",
    max_epsilon: Annotated[
        float, typer.Option(min=0.0, help="Join no fleet that spends more privacy than this.")
    ] = math.inf,
    format_: Formatted = Format.TEXT,
) -> None:
    """Join a fleet with an invitation, and install its newest release."""
    from fleet.enrolment import Invitation
    from node.enrolment import join

    invited = Invitation.parse(sys.stdin.read() if invitation == "-" else invitation)
    agent = join(folder, invited, _absolute(task), clock=lambda: datetime.now(UTC), max_epsilon=max_epsilon)
    active = agent.serving.active
    release = active.release if active else None
    agent.close()
    if format_ is Format.JSON:
        typer.echo(json.dumps({"name": agent.name, "release": release, "folder": str(folder)}))
    else:
        privacy, unit = agent.identity.settings.privacy, agent.task.unit.name
        typer.echo(
            f"This fleet spends at most epsilon {privacy.epsilon:g} at delta {privacy.delta:g}; hidden is {unit}."
        )
        typer.echo(f"{agent.name} is a node now, with release {release}. Next: edgefleet node run --folder {folder}")


@COMMANDS.command()
def run(
    folder: Folder = HERE,
    listen: Annotated[
        str, typer.Option(help="Where the local API is: http://127.0.0.1:PORT, or the path of a Unix socket.")
    ] = "http://127.0.0.1:8090",
    offline: Annotated[bool, typer.Option("--offline", help="Only answer: talk to no coordinator.")] = False,
    daily_megabytes: Annotated[
        float | None, typer.Option(min=0.001, help="What a metered link may carry a day, both ways.")
    ] = None,
) -> None:
    """Answer, learn and keep releases up to date, until interrupted."""
    from node.identity import require_node

    require_node(folder)
    daily_bytes = round(daily_megabytes * 1e6) if daily_megabytes else None
    order = {
        "folder": str(folder),
        "listen": listen,
        "online": not offline,
        "daily_bytes": daily_bytes,
        "version": version("edgefleet"),
    }
    sys.stdout.flush()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy multiplies nothing there
    # In its place, without what a command line needs: a node runs for months.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "node.running", json.dumps(order)])  # noqa: S606


@COMMANDS.command()
def status(folder: Folder = HERE, format_: Formatted = Format.TEXT) -> None:
    """Say what a node serves, what it has spent, and what waits; whether it runs or not."""
    from node.status import status as read

    known = read(folder)
    if format_ is Format.JSON:
        typer.echo(json.dumps(known))
        return
    width = max(map(len, known))
    for name, value in known.items():
        typer.echo(f"{name.replace('_', ' '):{width}}  {'-' if value is None else value}")


@COMMANDS.command()
def doctor(folder: Folder = HERE, format_: Formatted = Format.TEXT) -> None:
    """Look for what would keep a node from answering, learning or syncing, and say what to do."""
    from node.doctor import examine

    findings = examine(folder)
    if format_ is Format.JSON:
        typer.echo(json.dumps([{"part": f.part, "well": f.well, "message": f.message} for f in findings]))
    else:
        for finding in findings:
            typer.echo(f"{'ok ' if finding.well else 'ILL'} {finding.part}: {finding.message}")
    if ill := [finding for finding in findings if not finding.well]:
        raise UsageError(f"{_counted(ill)} to mend, see above")


@COMMANDS.command()
def replay(
    recording: Annotated[Path, typer.Argument(help="An .npz of x and y, or a CSV with a header, in arrival order.")],
    to: Annotated[str, typer.Option("--to", help="The node's local API.")] = "http://127.0.0.1:8090",
    rate: Annotated[float, typer.Option(min=0.001, help="Readings a second.")] = 10.0,
    labels: Annotated[bool, typer.Option(help="Tell the node the truth after each answer.")] = True,
    format_: Formatted = Format.TEXT,
) -> None:
    """Feed a recording to a running node, reading by reading, as its sensor would."""
    from node.replay import read, replay

    outcome = replay(read(recording), to, rate=rate, labels=labels)
    if format_ is Format.JSON:
        typer.echo(json.dumps(outcome))
    else:
        typer.echo(f"{outcome['answers']} answers, {outcome['right']} right, {outcome['labelled']} labels taken")


@COMMANDS.command()
def keys(folder: Folder = HERE) -> None:
    """Write the node's key for Flower as a stock flower-supernode reads it, beside node.db; print the two files."""
    from node.keys import write

    for path in write(folder):
        typer.echo(path)


def _absolute(reference: str) -> str:
    """A task's file as the node will find it from anywhere."""
    file, colon, name = reference.rpartition(":")
    return f"{Path(file).absolute()}{colon}{name}" if file.endswith(".py") else reference


def _counted(ill: "list[Finding]") -> str:
    return f"{len(ill)} thing{'s' if len(ill) > 1 else ''}"
