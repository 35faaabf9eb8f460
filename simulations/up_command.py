"""``edgefleet up``: a real fleet on this machine, from one command."""

import json
import signal
import time
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleet import durable
from fleet.errors import FleetError, MissingExtraError, UsageError
from fleet.output import Format
from simulations.folder import folder_named

if TYPE_CHECKING:
    from simulations.up import Fleet
    from simulations.up_view import UpView


def up(
    nodes: Annotated[int, typer.Option(min=2, max=16, help="Node processes, each with a watch's recording.")] = 5,
    out: Annotated[
        Path | None,
        typer.Option(parser=folder_named, metavar="PATH", help="Folder of the fleet; runs/up-DATE-TIME by default."),
    ] = None,
    until_promoted: Annotated[
        bool, typer.Option("--until-promoted", help="End when every node has committed a release that was trained.")
    ] = False,
    format_: Annotated[Format, typer.Option("--format", help="A live view, or one JSON object.")] = Format.TEXT,
) -> None:
    """Run a coordinator and nodes as processes on the loopback, the nodes answering to replayed recordings."""
    try:
        from simulations.smartwatch import TASK
        from simulations.up import Fleet, running
        from simulations.up_view import UpView
    except ImportError as error:
        raise MissingExtraError(f"{error.name} is missing: pip install 'edgefleet[simulate]'") from error
    folder = (out or Path("runs") / f"up-{datetime.now():%Y%m%d-%H%M%S}").absolute()
    make_ready(folder)
    worn = sorted(TASK.devices().items())
    chosen = dict(worn[:: len(worn) // nodes][:nodes])
    for number in (signal.SIGTERM, signal.SIGHUP):  # whoever ends us, or our terminal, ends all of it
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, signal.getsignal(signal.SIGINT))
    with running(Fleet(folder, chosen)) as fleet, UpView(quiet=format_ is Format.JSON) as view:
        for step in fleet.start():
            view.say(step)
        _watch(fleet, view, until_promoted=until_promoted)
        outcome = _outcome(fleet, folder)
    typer.echo(json.dumps(outcome) if format_ is Format.JSON else _sentence(outcome))


def make_ready(folder: Path) -> None:
    """Make the fleet's folder, if it is not there.

    Raises:
        UsageError: Something is in it, or it cannot be written.
    """
    try:
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty; choose another --out")
        durable.make_folder(folder)
        TemporaryFile(dir=folder).close()  # a folder can be there and not ours to write
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}; choose another --out") from error


def _watch(fleet: "Fleet", view: "UpView", *, until_promoted: bool) -> None:
    while True:
        fleet.check()
        overview, promoted = fleet.overview(), fleet.promoted()
        view.show(fleet, overview)
        if until_promoted and promoted == len(fleet.wearers):
            return
        if until_promoted and _is_over(overview):
            raise FleetError("the plan is over and not every node has committed a trained release; see the events")
        time.sleep(0.5)


def _is_over(overview: dict[str, Any]) -> bool:
    rounds = overview["rounds"]
    return rounds["played"] >= rounds["planned"] and rounds["open"] is None and overview["rollout"] is None


def _outcome(fleet: "Fleet", folder: Path) -> dict[str, Any]:
    overview = fleet.overview()
    standing = [wearer.status() for wearer in fleet.wearers]
    return {
        "folder": str(folder),
        "nodes": len(standing),
        "nodes_promoted": fleet.promoted(),
        "release": min(one["release"] or 0 for one in standing),
        "rounds": overview["rounds"]["done"],
        "updates_counted": overview["updates_counted"],
        "epsilon_max": max(one["epsilon_spent"] for one in standing),
        "answers": sum(wearer.answers for wearer in fleet.wearers),
        "answers_failed": sum(wearer.failed for wearer in fleet.wearers),
        "seconds": fleet.seconds,
        "schema": 1,
    }


def _sentence(outcome: dict[str, Any]) -> str:
    return (
        f"{outcome['nodes_promoted']} of {outcome['nodes']} nodes committed release {outcome['release']} after "
        f"{outcome['seconds'].get('promoted', float('nan')):.1f} s; {outcome['answers']} answers, "
        f"{outcome['answers_failed']} failed; epsilon {outcome['epsilon_max']:.2f} at most. "
        f"All is in {outcome['folder']}"
    )
