"""Kill the coordinator of a real fleet, and then a node, at every durable step and at random; look for what broke.

``python -m benchmarks.fleet_kills`` first watches a release go through, to learn the names of the steps. Then each is a
point to die at, once before it and, if it is a transaction, once after it. It prints a row a kill, and ends with 1 if a
promise was broken. ``--points 12 --random 4`` is a shorter one.
"""

import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.audit import Auditor
from benchmarks.toy_fleet import Program, ToyFleet
from fleet.output import Format

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

FIRST = "open_round: commit round"  # what comes before it is founding
REACHED_S = 120.0  # a step of a release comes every second round
LONGEST_S = 8.0  # until a random kill
VICTIM = "node-1"
OFTEN = 15  # times in the few rounds until a release has gone through
EACH_START = 8  # points that are aimed at in the order of a round, before the next such order begins


@dataclass(frozen=True, slots=True)
class Point:
    """A place in the program to die at: before or after a step, the times-th time."""

    step: str
    moment: str = "before"
    times: int = 1

    def __str__(self) -> str:
        nth = f" ({self.times})" if self.times > 1 else ""
        return f"{self.moment} {self.step}{nth}"

    def fate(self) -> tuple[str, str]:
        """As ``benchmarks.die_at`` takes it."""
        return "--at", f"{self.moment}:{self.times}:{self.step}"


@dataclass(frozen=True, slots=True)
class Kill:
    """One of them, and what was broken after it."""

    program: str
    point: str
    back_s: float  # until it did its work again
    broken: list[str]


@dataclass(slots=True)
class Outcome:
    """All of it."""

    kills: list[Kill] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    found: dict[str, int] = field(default_factory=dict)
    answers: int = 0
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0
    load: float = 0.0

    @property
    def well(self) -> bool:
        """Whether every promise was kept, and every point was come to."""
        return not (self.missed or self.broken or self.failed or any(kill.broken for kill in self.kills))


def usual(step: str, often: int) -> bool:
    """Whether every round comes to it: an operator does not, Flower tidies when it likes, and rounds seldom fail."""
    if step.startswith(("invitations.", "superlink.init", "superlink.stay_alive", "settle_round: ")):
        return False
    return often > 2 or not step.startswith(("Flower: ", "superlink."))


def points_of(log: Path, wanted: int) -> list[Point]:
    """Points to die at, from the steps that were taken while all went well; ``wanted`` of them, or 0 for all.

    What is done several times a round, once for each node, is died at the first, second or third time.
    """
    steps = log.read_text().splitlines()
    steps = steps[steps.index(FIRST) :] if FIRST in steps else steps
    often = Counter(steps)
    points: list[Point] = []
    for i, step in enumerate(step for step in often if usual(step, often[step])):
        times = 1 + i % 3 if often[step] > OFTEN else 1
        points.append(Point(step, "before", times))
        if ": commit " in step:
            points.append(Point(step, "after", times))
    if not 0 < wanted < len(points):
        return points
    return [points[i * len(points) // wanted] for i in range(wanted)]


def in_turns(points: list[Point]) -> list[Point]:
    """Each of several rounds is killed at points that follow each other in a round."""
    turns = max(1, -(-len(points) // EACH_START))
    return [point for turn in range(turns) for point in points[turn::turns]]


class Killer:
    """Kills the programs of one fleet, and looks after each kill."""

    def __init__(self, fleet: ToyFleet, say: Callable[[str], None]) -> None:
        self._fleet = fleet
        self._say = say
        self._auditor = Auditor(fleet.folder)
        self.outcome = Outcome()

    def at_points(self, name: str, program: Program, points: list[Point]) -> None:
        """Start it again and again, with the next point to die at each time."""
        for point in in_turns(points):
            self._say(f"{name}: {point}")
            log = self._fleet.folder / f"{name}.steps"
            begun = time.monotonic()
            program.start("--log", str(log), *point.fate())
            program.within(REACHED_S, program._is_up)
            back_s = time.monotonic() - begun
            program.within(REACHED_S, lambda: False)
            if not program.was_killed:
                self.outcome.missed.append(f"{name} {point}")
            self._dead(name, str(point), program, back_s)

    def at_random(self, name: str, program: Program, kills: int, rng: random.Random) -> None:
        """Let it run for a random time, from its first line on."""
        for index in range(kills):
            lives_s = rng.uniform(0.5, LONGEST_S)
            self._say(f"{name}: {index + 1} of {kills} at random, after {lives_s:.1f} s")
            begun = time.monotonic()
            program.start()
            up = program.within(lives_s, program._is_up)
            back_s = time.monotonic() - begun
            program.within(lives_s - back_s, lambda: False)
            self._dead(name, f"after {lives_s:.1f} s" + ("" if up else ", still starting"), program, back_s)

    def end(self) -> None:
        """Let a whole round be played, and account for all of them."""
        self._say("a last round without kills")
        admin = self._fleet.admin()
        assert admin  # noqa: S101 - the coordinator runs
        last = admin.get("rounds")[-1]["number"] + 1
        over = lambda: any(r["number"] >= last and r["state"] != "open" for r in admin.get("rounds"))  # noqa: E731
        if not self._fleet.coordinator.within(REACHED_S, over):
            self.outcome.broken.append("no round ends any more")
        self._fleet.stop()
        self._say("the account")
        broken, self.outcome.found = self._auditor.account()
        self.outcome.broken += broken
        self.outcome.answers = sum(device.answers for device in self._fleet.devices)
        self.outcome.failed = [failure for device in self._fleet.devices for failure in device.failed]

    def _dead(self, name: str, point: str, program: Program, back_s: float) -> None:
        program.kill()
        broken = self._auditor.look()
        self.outcome.kills.append(Kill(name, point, round(back_s, 2), broken))
        if broken:
            self._say(f"  BROKEN: {'; '.join(broken)}")


@contextmanager
def running(folder: Path, nodes: int) -> Iterator[ToyFleet]:
    """A fleet whose steps are written down; at the end nothing of it is left running."""
    fleet = ToyFleet(folder, nodes)
    try:
        fleet.found("--log", str(folder / "coordinator.steps"))
        for name, node in fleet.nodes.items():
            node.start(*(("--log", str(folder / f"{name}.steps")) if name == VICTIM else ()))
        fleet.settle_in()
        yield fleet
    finally:
        fleet.stop()


def until_played(fleet: ToyFleet, *, released: bool) -> None:
    """Until a round has ended, or also a release that was trained has gone through."""

    def done() -> bool:
        admin = fleet.admin()
        if admin is None:
            return False
        if released:
            return any(r["number"] and r["phase"] == "done" for r in admin.get("releases"))
        return any(r["state"] == "closed" for r in admin.get("rounds"))

    if not fleet.coordinator.within(2 * REACHED_S, done):
        raise RuntimeError(f"nothing came of it; look at the logs in {fleet.folder}")


def play(
    folder: Path,
    *,
    nodes: int,
    points: int,
    node_points: int,
    kills: int,
    seed: int,
    say: Callable[[str], None],
    released: bool = True,
) -> Outcome:
    """The whole of it, or with ``released`` false only what belongs to rounds; what came of it."""
    begun = time.monotonic()
    say(f"founding a coordinator with {nodes} nodes in {folder}")
    with running(folder, nodes) as fleet:
        say(f"a {'release' if released else 'round'} goes through, and every step is written down")
        until_played(fleet, released=released)
        killer, victim = Killer(fleet, say), fleet.nodes[VICTIM]
        fleet.coordinator.kill()
        if points >= 0:
            killer.at_points("coordinator", fleet.coordinator, points_of(folder / "coordinator.steps", points))
        killer.at_random("coordinator", fleet.coordinator, kills, random.Random(seed))  # noqa: S311 - no secret
        fleet.coordinator.start()
        fleet.coordinator.ready()
        if node_points >= 0:
            victim.kill()
            killer.at_points(VICTIM, victim, points_of(folder / f"{VICTIM}.steps", node_points))
            victim.start()
            victim.ready()
        killer.end()
    killer.outcome.seconds = round(time.monotonic() - begun, 1)
    killer.outcome.load = os.getloadavg()[0]
    return killer.outcome


def show(outcome: Outcome) -> None:
    """One table and a few lines."""
    table = Table("program", "killed", "back after s", "broken promises")
    for kill in outcome.kills:
        table.add_row(kill.program, kill.point, f"{kill.back_s:.1f}", ", ".join(kill.broken) or "none")
    console = Console()
    console.print(table)
    counts = Counter(kill.program for kill in outcome.kills)
    console.print(f"{', '.join(f'{n} kills of {name}' for name, n in counts.items())} in {outcome.seconds:.0f} s")
    console.print(", ".join(f"{number} {what.replace('_', ' ')}" for what, number in outcome.found.items()))
    console.print(f"{outcome.answers} answers of the nodes, {len(outcome.failed)} failed")
    for line in (*outcome.broken, *outcome.failed, *(f"never came to {point}" for point in outcome.missed)):
        console.print(f"BROKEN: {line}")


def main(
    points: Annotated[int, typer.Option(help="Kills of the coordinator at named points; 0 for all, -1 for none.")] = 30,
    random_: Annotated[int, typer.Option("--random", help="Kills of the coordinator at random.", min=0)] = 30,
    node_points: Annotated[int, typer.Option(help="Kills of a node at its durable steps; 0 for all, -1 none.")] = 0,
    nodes: Annotated[int, typer.Option(min=3)] = 5,
    seed: Annotated[int, typer.Option(help="Of the random moments.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Keep the fleet's folder here.")] = None,
    format_: Annotated[Format, typer.Option("--format")] = Format.TEXT,
) -> None:
    """Kill, start again, look; at the end account for every round."""
    begun = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - begun:6.1f} s  {what}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        folder = (out or Path(temporary) / "fleet").absolute()
        outcome = play(folder, nodes=nodes, points=points, node_points=node_points, kills=random_, seed=seed, say=say)
    if format_ is Format.JSON:
        print(json.dumps(asdict(outcome)))
    else:
        show(outcome)
    raise typer.Exit(not outcome.well)


if __name__ == "__main__":
    typer.run(main)
