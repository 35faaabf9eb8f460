"""``edgefleet simulate``: plays a whole fleet on this machine."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleet import durable
from fleet.errors import MissingExtraError, StoreError, TaskError, UsageError
from fleet.garbage import kept_for_good
from fleet.output import Format
from simulations.extra import check_installed
from simulations.folder import folder_named
from simulations.second_core import SecondCore, second_core

if TYPE_CHECKING:
    from fleet.settings import Settings
    from simulations.result import Result
    from simulations.scenario import Wish
    from simulations.stories.story import Tale

CONFIG = Path("fleet.toml")
DATA = "data.sha256"
RESULT = "result.json"
LOCK = "run.lock"
_STORIES = "Play a-new-device, bad-release, budget-runs-out, offline-day or poisoned-cohort."
_NOT_BEGUN = {LOCK, ".run.json.part"}  # what a kill leaves that comes before the first file is whole


def simulate(
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything but the noise.")] = 0,
    rounds: Annotated[int | None, typer.Option(help="Rounds to play; the privacy plan is shared among them.")] = None,
    nodes: Annotated[int | None, typer.Option(help="Devices in the fleet, 2 or more; by default all.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="Privacy budget; inf for no privacy.")] = None,
    model: Annotated[str | None, typer.Option(help="Of the built-in smartwatch task: features or cnn.")] = None,
    fold: Annotated[int, typer.Option(help="Which person is donor, and who held out; built in, 0 to 9.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(parser=folder_named, metavar="PATH", help="Folder of the run; runs/DATE-TIME by default."),
    ] = None,
    story: Annotated[str | None, typer.Option(help=_STORIES)] = None,
    resume: Annotated[
        Path | None, typer.Option(parser=folder_named, metavar="PATH", help="Go on with the run of this folder.")
    ] = None,
    format_: Annotated[Format, typer.Option("--format", help="Table for people, or one JSON object.")] = Format.TEXT,
) -> None:
    """Play a fleet of devices on recorded data: fleet.toml's task if it is here, else the built-in smartwatch."""
    started = time.monotonic()
    from simulations.scenario import Wish

    if resume:
        if (seed, rounds, nodes, epsilon, model, fold, out, story) != (0, None, None, None, None, 0, None, None):
            raise UsageError("--resume goes on as the run began: leave out the other flags")
        folder = resume
        wish, pinned = Wish.saved(resume)
    else:
        built_in = "features" if model is None else model
        wish = Wish(config_here(model), built_in, fold, seed, nodes, rounds, epsilon, story)
        pinned = None
        folder = out or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}"
    anew = pinned is None and wish.config is None  # else its check exported the task, or the run's beginning did
    meanwhile = second_core(wish.model, wish.fold) if anew else nullcontext()
    with meanwhile as core, redirect_stdout(sys.stderr):  # what a task's code prints is not the result
        outcome, tale = _play(folder, wish, pinned, started, core, quiet=format_ is Format.JSON)
    if format_ is Format.JSON:
        typer.echo(json.dumps(_told(outcome, tale)))
    else:
        from simulations.view import print_result

        print_result(outcome, folder, tale)


def config_here(model: str | None) -> str | None:
    """The ``fleet.toml`` of this folder, if there is one.

    Raises:
        UsageError: There is one, and ``model`` asks for the built-in task; or it is a link to nothing.
    """
    if not CONFIG.exists():
        if CONFIG.is_symlink():
            raise UsageError(f"{CONFIG} here is a link to {CONFIG.readlink()}, which is not there; mend or remove it")
        return None
    if model:
        raise UsageError("--model chooses a built-in model, but fleet.toml here names a task; leave one out")
    return str(CONFIG.absolute())


def _play(
    folder: Path, wish: "Wish", pinned: "Settings | None", started: float, core: SecondCore | None, *, quiet: bool
) -> "tuple[Result, Tale | None]":
    check_installed()
    try:
        with kept_for_good():
            from simulations.measure import measure
            from simulations.result import result
            from simulations.scenario import scenario
            from simulations.script import PLAIN
            from simulations.view import View
            from simulations.world import World
    except ImportError as error:
        raise MissingExtraError(f"{error.name} is missing: pip install 'edgefleet[simulate]'") from error
    if pinned and (ended := _ended(folder)):
        return ended
    plan = scenario(wish, pinned)
    view = View(plan.settings, quiet=quiet)
    with _owned(folder, fresh=pinned is None), _room_needed(folder), view:
        wish.save(folder, plan.settings)
        _check_data(folder, plan.data_digest())
        for warning in plan.warnings:
            view.say(f"warning: {warning}")
        try:
            with kept_for_good():
                world = World(
                    folder,
                    plan.task,
                    plan.settings,
                    plan.fleet,
                    seed=wish.seed,
                    started=started,
                    script=plan.story or PLAIN,
                    core=core,
                )
            world.play(view.show)
            measure(world, plan.held_out).save(folder)
            tale = plan.story.tale(world, plan.held_out) if plan.story else None
        except (KeyboardInterrupt, TaskError) as error:
            if _is_interrupt(error):
                view.say(f"Interrupted; nothing is lost. Go on with: {_again(folder)}")
            else:
                view.say(f"Nothing is lost. Once this is mended, go on with: {_again(folder)}")
            raise
        outcome = result(world, plan.held_out, seed=wish.seed, warnings=plan.warnings)
        world.close()
        if tale:
            durable.write(folder / "story.json", json.dumps(tale.to_json(), indent=2).encode())
        durable.write(folder / RESULT, json.dumps(_told(outcome, tale), indent=2).encode())
        _report(folder)
    return outcome, tale


def _ended(folder: Path) -> "tuple[Result, Tale | None] | None":
    """What a run that is over came to; None as long as its result or its report is still to be written."""
    from simulations.report import FILE
    from simulations.result import Result
    from simulations.stories.story import Tale

    if not (folder / FILE).exists():
        return None
    try:
        told = json.loads((folder / RESULT).read_bytes())
        story = told.pop("story", None)
        return Result.from_json(told), Tale(**story) if story else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # none, or of another version: it is made again
        return None


def _again(folder: Path, flag: str = "--resume") -> str:
    return f"edgefleet simulate {flag} {quote(str(folder))}"


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind it: torch's exporter wraps whatever it meets."""
    if error is None or isinstance(error, KeyboardInterrupt):
        return error is not None
    return _is_interrupt(error.__cause__) or _is_interrupt(error.__context__)


def _check_data(folder: Path, digest: str) -> None:
    """Refuse to go on with other data than the run began with: a window would be used twice, or learned and judged."""
    path = folder / DATA
    if not path.exists():
        durable.write(path, digest.encode())
    elif path.read_text() != digest:
        raise UsageError(f"the data are not those that {folder} began with: put them back, or begin anew with --out")


def _told(outcome: "Result", tale: "Tale | None") -> dict[str, Any]:
    return outcome.to_json() | ({"story": tale.to_json()} if tale else {})


def _report(folder: Path) -> None:
    from simulations.report import write

    write(folder)


@contextmanager
def _owned(folder: Path, *, fresh: bool) -> Iterator[None]:
    """Hold the run's folder: one process plays a run at a time."""
    with ExitStack() as stack:
        try:
            if fresh and not (folder / LOCK).exists():  # then it is no run of ours, and we leave nothing in it
                _check_empty(folder)
            durable.make_folder(folder)
            stack.enter_context(durable.held(folder / LOCK))
            if fresh:
                _check_empty(folder)
        except BlockingIOError as error:
            raise UsageError(f"{folder} is being played by another process") from error
        except OSError as error:
            other = "; choose another --out" if fresh else ""
            raise UsageError(f"{folder} cannot be written: {error.strerror}{other}") from error
        yield


@contextmanager
def _room_needed(folder: Path) -> Iterator[None]:
    """A full disk, or one that takes nothing for another reason, is one line, and how to go on."""
    try:
        yield
    except Exception as error:
        if not durable.is_full(error):
            raise
        again = _again(folder, "--resume" if (folder / "run.json").exists() else "--out")
        raise StoreError(f"{folder} cannot be written; is the disk full? Then go on with: {again}") from error


def _check_empty(folder: Path) -> None:
    if folder.exists() and any(path.name not in _NOT_BEGUN for path in folder.iterdir()):
        resume = f", or go on with --resume {quote(str(folder))}" if (folder / "run.json").exists() else ""
        raise UsageError(f"{folder} is not empty; choose another --out{resume}")
