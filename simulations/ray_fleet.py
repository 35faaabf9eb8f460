"""Flower's own simulation: the ServerApp and ClientApp of the in-process fleet, with the nodes in Ray's processes."""

import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from coordinator.server_app import Reports, server_app
from fleet import flwr_compat
from fleet.errors import LinkError
from fleet.events import EventLog
from fleet.task import Recording, Task
from node.agent import Agent
from node.client_app import client_app
from node.workshop import InProcess
from simulations.clock import SimulatedClock
from simulations.once import ADMIT
from simulations.progress import read_progress
from simulations.scenario import Wish, configured
from simulations.shelf import CountingFetcher
from simulations.world import Device, World, read_window

NAME = "query.name"
ASK_TIMEOUT_S = 600.0
_START_S = 120.0
_POLL_S = 0.1


def play(world: World, rounds: int, watch: Callable[[], None]) -> None:
    """Play so many hours of a world whose wish is saved in its folder; ``watch`` is called before and after each.

    Ray hands a message to whichever of its processes is free, and there it opens its node's folder, which is all
    that a node is. Flower chooses the ids. Afterwards the world is closed; opened again, it goes on in one process.

    Raises:
        MissingExtraError: Ray is not installed.
        LinkError: Ray did not start, or a node does not say who it is.
    """
    for device in world.devices.values():
        device.agent.close()
    try:
        server = hours_app(world, rounds, watch, pause=lambda: _wait(world))
        flwr_compat.simulate(server, folder_app(world.folder, _by_partition), nodes=len(world.devices))
    finally:
        world.coordinator.registry.close()


def hours_app(world: World, rounds: int, watch: Callable[[], None], *, pause: Callable[[], None]) -> ServerApp:
    """Enrols the nodes that are there, then lets hours pass with the coordinator's own ServerApp.

    A node is asked for its report once an hour: whoever has none has seen too little, and sees no more in that hour.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        for name, id_ in _ids(grid, len(world.devices)).items():
            world.coordinator.enrol(name, world.devices[name].agent.public_key, id_)
        watch()
        for _ in range(rounds):
            world.clock.set_hour(world.progress.hour)
            world.repository.heartbeat()
            reports = Reports(world.coordinator, again_s=ASK_TIMEOUT_S)
            server_app(world.coordinator, pause=pause, reports=reports, timeout_s=ASK_TIMEOUT_S)(grid, context)
            world.progress.hour += 1
            world.save()
            watch()

    return app


def _wait(world: World) -> None:
    """Nodes work while the coordinator waits, so simulated time passes as fast as the clock on the wall."""
    time.sleep(_POLL_S)
    world.clock.pass_time(timedelta(seconds=_POLL_S))


def folder_app(folder: Path, name_of: Callable[[Path, Context], str]) -> ClientApp:
    """The ClientApp of all nodes of a run's folder; ``name_of`` says which of them a message is for."""
    app = ClientApp()

    @app.query("name")
    def name(message: Message, context: Context) -> Message:
        return Message(RecordDict({"node": ConfigRecord({"name": name_of(folder, context)})}), reply_to=message)

    def wake(message: Message, context: Context) -> Message:
        return _wake(folder, name_of(folder, context), message, context)

    app.train("update")(wake)
    app.evaluate("report")(wake)
    return app


def _wake(folder: Path, name: str, message: Message, context: Context) -> Message:
    """Open a node; let it read what it has not seen, answer the message by its own ClientApp, and work."""
    device, hour = _device(folder, name)
    try:
        for index in range(device.agent.shadow.next_seq(), hour + 1):
            read_window(device, index)
        device.agent.step()
        reply = client_app(device.agent)(message, context)
        device.agent.step()
    finally:
        device.agent.close()
    return reply


def _device(folder: Path, name: str) -> tuple[Device, int]:
    """A node of the run as it was left, and the hour it is."""
    task, recordings = _played(folder)
    clock, hour = SimulatedClock(), read_progress(folder).hour
    clock.set_hour(hour)
    fetcher = CountingFetcher(folder / "coordinator" / "repository")
    record = EventLog(folder / "events.jsonl", clock).record(name)
    node = folder / "nodes" / name
    agent = Agent(node, task, workshop=InProcess(fetcher), clock=clock, admit=ADMIT, record=record)
    return Device(recordings[name], agent, fetcher), hour


@cache
def _played(folder: Path) -> tuple[Task, dict[str, Recording]]:
    task, _ = configured(Wish.saved(folder)[0])
    return task, task.devices()


def _by_partition(folder: Path, context: Context) -> str:
    """Flower numbers a simulation's nodes from 0; ours are in alphabetical order."""
    names = sorted(path.name for path in (folder / "nodes").iterdir())
    return names[int(str(context.node_config["partition-id"]))]


def _ids(grid: Grid, nodes: int) -> dict[str, int]:
    """Flower's id of each node, by name, as soon as all are there."""
    deadline = time.monotonic() + _START_S
    while len(ids := list(grid.get_node_ids())) < nodes:
        if time.monotonic() > deadline:
            raise LinkError(f"{len(ids)} of {nodes} nodes were there after {_START_S:.0f} s")
        time.sleep(_POLL_S)
    asked = [Message(RecordDict(), id_, NAME) for id_ in ids]
    replies = list(grid.send_and_receive(asked, timeout=ASK_TIMEOUT_S))
    if len(known := {_name(reply): reply.metadata.src_node_id for reply in replies}) < nodes:
        raise LinkError(f"{len(known)} of {nodes} nodes said who they are")
    return known


def _name(reply: Message) -> str:
    if reply.has_error():
        raise LinkError(f"a node cannot say who it is: {reply.error.reason}")
    return str(reply.content.config_records["node"]["name"])
