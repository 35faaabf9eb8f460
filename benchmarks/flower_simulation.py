"""The same ServerApp and ClientApps in Flower's own simulation (Ray) and in one process: wall seconds a round.

``python -m benchmarks.flower_simulation`` plays the smartwatches three times, one after the other on this machine.
In one process agents stay open from round to round. With Ray, which hands a message to any free process, each message
opens its node's folder; the row in between does that in one process, so that it shows what is Ray's own share.
"""

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

from fleet import flwr_compat
from simulations.grid import InProcessGrid
from simulations.ray_fleet import folder_app, hours_app, play
from simulations.scenario import Scenario, Wish, scenario
from simulations.world import FIRST_FLOWER_ID, PAUSE, World


@dataclass(frozen=True, slots=True)
class Timing:
    """One way of playing: wall seconds until the first round, of the first, and the median of the later ones.

    ``updates`` counted and ``epsilon`` spent show that all ways did the same work.
    """

    start_s: float
    first_s: float
    later_s: float
    updates: int
    epsilon: float


def world_of(folder: Path, wish: Wish, plan: Scenario) -> World:
    """A new fleet in ``folder``, which says by itself what it plays."""
    wish.save(folder, plan.settings)
    return World(folder, plan.task, plan.settings, plan.fleet, seed=wish.seed, started=time.monotonic())


def in_one_process(world: World, rounds: int, watch: Callable[[], None]) -> None:
    """As ``edgefleet simulate`` does."""
    watch()
    world.play(lambda _: watch())
    world.close()


def in_one_process_opened(world: World, rounds: int, watch: Callable[[], None]) -> None:
    """The ClientApp that opens a node's folder for each message, without Ray."""
    for device in world.devices.values():
        device.agent.close()
    names = {FIRST_FLOWER_ID + index: name for index, name in enumerate(world.devices)}
    app = folder_app(world.folder, lambda folder, context: names[context.node_id])
    server = hours_app(world, rounds, watch, pause=lambda: world.clock.pass_time(PAUSE))
    server(InProcessGrid(dict.fromkeys(names, app)), flwr_compat.context(1, flwr_compat.COORDINATOR_ID))
    world.coordinator.registry.close()


WAYS: dict[str, Callable[[World, int, Callable[[], None]], None]] = {
    "in one process": in_one_process,
    "in one process, opened by each message": in_one_process_opened,
    "Ray": play,
}


def timing(way: str, wish: Wish, plan: Scenario) -> Timing:
    """Play a new fleet in one way."""
    rounds, marks = plan.settings.round.rounds, [time.monotonic()]
    with tempfile.TemporaryDirectory() as folder:
        WAYS[way](world_of(Path(folder), wish, plan), rounds, lambda: marks.append(time.monotonic()))
        world = World(Path(folder), plan.task, plan.settings, plan.fleet, seed=wish.seed, started=time.monotonic())
        updates = world.coordinator.registry.rounds.counted()
        epsilon = max(device.agent.ledger.epsilon() for device in world.devices.values())
        world.close()
    start, first, *later = (after - before for before, after in pairwise(marks))
    return Timing(start, first, median(later), updates, epsilon)


def main(
    nodes: Annotated[int | None, typer.Option(help="Devices; all 16 by default.")] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Rounds to play.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Time a round in each way."""
    logging.basicConfig(level=logging.ERROR)
    wish = Wish(nodes=nodes, rounds=rounds)
    plan = scenario(wish)
    plan = replace(plan, settings=plan.settings.changed(release={"every_rounds": rounds + 1}))  # rounds only
    timings = {way: timing(way, wish, plan) for way in WAYS}
    if as_json:
        typer.echo(json.dumps({way: asdict(seen) for way, seen in timings.items()}))
        return
    fastest = timings["in one process"].later_s
    table = Table("", "start, s", "round 1, s", "later, s", "ratio", "updates", "epsilon")
    for way, seen in timings.items():
        seconds = (f"{value:.2f}" for value in (seen.start_s, seen.first_s, seen.later_s))
        table.add_row(way, *seconds, f"{seen.later_s / fastest:.1f}", str(seen.updates), f"{seen.epsilon:.3f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
