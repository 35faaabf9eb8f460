"""A small real fleet, whatever carries Flower's messages: coordinator and nodes are the same, only that differs."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from coordinator.access import Access, Address, Directory
from coordinator.api.device import device_app
from coordinator.api.gate import Gate, Limits
from coordinator.api.listener import Listener
from coordinator.founding import found
from coordinator.reply import Longest
from coordinator.round import Round, RoundState
from coordinator.server_app import UPDATE, Reports, server_app
from coordinator.superlink import SuperLink, own_replies
from coordinator.tokens import Tokens
from fleet import flwr_compat
from fleet.enrolment import pem
from fleet.events import EventLog
from fleet.flwr_compat import FleetApi
from fleet.settings import Settings
from fleet.signing import Sealed
from node.agent import Agent
from node.client_app import client_app
from node.coordinator_client import CoordinatorClient, CoordinatorClock
from node.enrolment import join
from node.link import FlowerPost, Link
from node.membership import Membership
from node.store import open_store
from node.transport import Transport
from node.visit import visit
from simulations.grid import Fate, InProcessGrid
from tests.coordinator.conftest import key_of
from tests.node.conftest import Toy
from tests.toy_task import TASK

REFERENCE = "tests.toy_task:TASK"
SETTINGS = Settings().changed(
    task={"file": REFERENCE},
    privacy={"planned_releases": 60, "partition_examples": 10},
    round={"rounds": 60, "min_updates": 2},
    release={"every_rounds": 100, "shadow_windows": 3, "probation_windows": 2},
)
LONGEST = Longest(100_000)
PATIENCE_S = 240.0
ASK_S = 60.0  # a question that its node took along when it died is put again
PAUSE_S = 0.1
EXAMPLES = 20


def now() -> datetime:
    return datetime.now(UTC)


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    """What a program recorded in its folder under this name."""
    path = folder / "events.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == name]


@dataclass
class Node:
    """An enrolled device of a test: its folder, and what went wrong with it, if anything."""

    name: str
    folder: Path
    broken: bool = False
    parts: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def agent(self) -> Iterator[Agent]:
        """The node's agent, for a moment."""
        with visit(self.folder, CoordinatorClock(now)) as agent:
            yield agent

    def events(self, name: str) -> list[dict[str, Any]]:
        """What the node recorded under this name."""
        return events(self.folder, name)

    def dump(self) -> list[str]:
        """All that the node's store holds."""
        with closing(open_store(self.folder / "node.db")) as store:
            return [line for line in store.iterdump() if "allowance" not in line]

    def membership(self) -> Membership:
        """The node's keys."""
        with closing(open_store(self.folder / "node.db")) as store:
            membership = Membership.load(store)
        assert membership is not None
        return membership

    @property
    def public_key(self) -> bytes:
        """Its key for Flower, as PEM."""
        return pem(self.membership().flower_key.public_key())

    def charges(self) -> list[tuple[str, int]]:
        """What the node's ledger holds."""
        with self.agent() as agent:
            return agent.ledger.charges()

    def rounds(self) -> list[int]:
        """The rounds that the node gave something to."""
        with closing(open_store(self.folder / "node.db")) as store:
            return [row[0] for row in store.execute("select round from session where round is not null")]

    def sent(self, round_: int) -> tuple[bytes, bytes, bytes]:
        """Fields, signature and delta that the node bound to a round."""
        query = "select body, signature, payload from session where round = ?"
        with closing(open_store(self.folder / "node.db")) as store:
            row: tuple[bytes, bytes, bytes] = store.execute(query, (round_,)).fetchone()
        return row


class Named(Protocol):
    """A node of whatever kind."""

    @property
    def name(self) -> str: ...


class Broken:
    """A participant whose code fails."""

    def update(self, sealed: Sealed) -> None:
        raise ZeroDivisionError("the sensor is gone")

    report = update


class Network:
    """A coordinator with its device API, and a transport of Flower's messages that a subclass brings."""

    task = TASK
    settings = SETTINGS
    reference = REFERENCE
    grid: Grid
    directory: Directory
    fleet_app: Any
    knows: Callable[[Mapping[bytes, bytes]], bool]

    def __init__(self, folder: Path, toy: Toy, stack: ExitStack, *, port: int = 0) -> None:
        self.folder = folder
        self.toy = toy
        self.stack = stack
        self.lead = timedelta()  # how far the coordinator's clock was moved on, past deadlines
        self.nodes: dict[str, Node] = {}
        record = EventLog(folder / "events.jsonl", now).record("coordinator")
        self.coordinator, repository = found(
            folder,
            self.task,
            self.settings,
            register=lambda: toy.template,
            warm_start=toy.weights,
            clock=lambda: now() + self.lead,
            record=record,
        )
        stack.callback(self.coordinator.registry.close)
        self.open()
        listener = Listener("127.0.0.1", port)
        self.url = f"http://127.0.0.1:{listener.port}"
        address = Address(self.url, "", repository.first_root_bytes(), self.task, self.reference, self.settings)
        tokens = Tokens(key_of("tokens"))
        self.access = Access(self.coordinator, self.directory, tokens, address, clock=now, record=record)
        status = {"round": None, "shelf": 1, "poll_s": 1}
        device = device_app(self.access, repository.folder, status=lambda: dict(status), clock=now, record=record)
        gate = Gate(self.fleet_app, device, self.knows, own_replies, Limits(LONGEST), record=record)
        stack.enter_context(listener.serving(gate))

    # a transport

    def open(self) -> None:
        """Bring grid, directory and Flower's application."""
        raise NotImplementedError

    def connect(self, node: Node) -> None:
        """Let a node come online."""
        raise NotImplementedError

    def disconnect(self, node: Node) -> None:
        """Let a node go offline."""
        raise NotImplementedError

    def break_app(self, node: Node) -> None:
        """From now on the node's ClientApp raises."""
        node.broken = True

    def work(self) -> None:
        """What nodes do while the coordinator waits."""
        time.sleep(PAUSE_S)

    # a fleet

    def join(self, name: str, *, examples: int = EXAMPLES) -> Node:
        """Enrol a node, with something to learn from, and let it come online, in its own time."""
        node = self.enrol(name, examples=examples)
        self.connect(node)
        return node

    def enrol(self, name: str, *, examples: int = EXAMPLES) -> Node:
        """Enrol a node over HTTP, with something to learn from; it is not online yet."""
        folder = self.folder.parent / name
        agent = join(folder, self.access.invite(name), REFERENCE, clock=now)
        if examples:
            agent.buffer.keep(self.toy.points(examples, seed=len(self.nodes)))
        agent.close()
        node = Node(name, folder)
        self.nodes[name] = node
        return node

    def until_online(self, node: Node) -> None:
        """Wait for a node that is coming online."""
        self.until(lambda: self.id_of(node) in set(self.grid.get_node_ids()))

    def dismiss(self, node: Node) -> None:
        """Revoke a node that is needed no more, and end what runs of it, however."""
        self.access.revoke(node.name)
        self.disconnect(node)

    def id_of(self, node: Node) -> int:
        """Flower's id of a node, as the roster has it."""
        return next(entry.flower_id for entry in self.coordinator.registry.roster.entries() if entry.name == node.name)

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for something to become true, or fail."""
        end = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < end, "it did not happen in time"
            self.work()

    def play(
        self,
        *expected: Named,
        meanwhile: Callable[[], None] = lambda: None,
        over: Callable[[], bool] = lambda: True,
    ) -> Round:
        """A whole round; its deadline comes once the expected nodes have answered and it may be over."""
        round_ = self.coordinator.open_round(asked=True)
        assert round_ is not None
        names, end = {node.name for node in expected}, time.monotonic() + PATIENCE_S

        def pause() -> None:
            assert time.monotonic() < end, "the round is stuck"
            meanwhile()
            self.work()
            if names <= self.coordinator.registry.rounds.answered(round_.number) and over():
                self.lead = max(self.lead, round_.deadline - now())

        self._window(pause)
        ended = self.coordinator.registry.rounds.all()[-1]
        assert (ended.number, ended.state) == (round_.number, RoundState.CLOSED)
        return ended

    def ask_reports(self) -> None:
        """A window without a round: only the running rollout is asked about."""
        self._window(self.work)

    def ask(self, *questions: tuple[Node, Sealed], kind: str = UPDATE) -> list[Message]:
        """Raw questions to nodes that are online, all at once; whatever comes back, in the same order."""
        self.grid.get_node_ids()
        asked = list(self.grid.push_messages([self._question(node, sealed, kind) for node, sealed in questions]))
        replies: dict[str, Message] = {}

        def answered() -> bool:
            for reply in self.grid.pull_messages([id_ for id_ in asked if id_ not in replies]):
                replies[reply.metadata.reply_to_message_id] = reply
            return replies.keys() == set(asked)

        self.until(answered)
        return [replies[id_] for id_ in asked]

    def _question(self, node: Node, sealed: Sealed, kind: str) -> Message:
        record = ConfigRecord({"body": sealed.body, "signature": sealed.signature})
        return Message(RecordDict({"instruction": record}), self.id_of(node), kind, ttl=PATIENCE_S)

    def _window(self, pause: Callable[[], None]) -> None:
        reports = Reports(self.coordinator, ask_s=ASK_S, again_s=1.0)
        app = server_app(self.coordinator, pause=pause, reports=reports, timeout_s=PATIENCE_S, ask_s=ASK_S, again_s=0.2)
        app(self.grid, flwr_compat.context(self.grid.run.run_id, flwr_compat.COORDINATOR_ID))


class InProcess(Network):
    """(a) One process, no network but for bases: messages are delivered by a function call."""

    def open(self) -> None:
        self.grid = InProcessGrid({}, link=self._fate)
        self.directory = Numbers()
        self.fleet_app, self.knows = None, lambda headers: False
        self._online: set[str] = set()
        self._agents: dict[str, Agent] = {}

    def connect(self, node: Node) -> None:
        self._online.add(node.name)
        if node.name not in self._agents:
            agent = self.stack.enter_context(visit(node.folder, CoordinatorClock(now)))
            self._agents[node.name] = agent
            assert isinstance(self.grid, InProcessGrid)
            self.grid.connect(self.id_of(node), app_of(node, agent))

    def disconnect(self, node: Node) -> None:
        self._online.discard(node.name)

    def work(self) -> None:
        for agent in self._agents.values():
            agent.learn()

    def _fate(self, node_id: int) -> Fate:
        ids = {id_: name for name, id_ in self.coordinator.registry.roster.active().items()}
        return Fate.DELIVERED if ids.get(node_id) in self._online else Fate.OFFLINE


class Numbers:
    """A list of nodes that numbers their keys."""

    def __init__(self) -> None:
        self._keys: list[bytes] = []

    def register(self, key: bytes) -> int:
        if key not in self._keys:
            self._keys.append(key)
        return 1000 + self._keys.index(key)

    def unregister(self, key: bytes) -> None: ...


class Embedded(Network):
    """(b) The coordinator's own SuperLink, and our link over loopback HTTP, a thread a node."""

    def open(self) -> None:
        link = SuperLink(self.folder / "superlink.db")
        grid = link.grid(wait=self.work, longest=LONGEST)
        self.stack.callback(grid.end)
        self.grid, self.directory, self.fleet_app, self.knows = grid, link, link.app, link.knows

    def connect(self, node: Node) -> None:
        stop = threading.Event()
        thread = threading.Thread(target=self._talk, args=(node, stop), name=node.name, daemon=True)
        node.parts["stop"], node.parts["thread"] = stop, thread
        self.stack.callback(self.disconnect, node)
        thread.start()

    def disconnect(self, node: Node) -> None:
        node.parts["stop"].set()
        node.parts["thread"].join()

    def _talk(self, node: Node, stop: threading.Event) -> None:
        membership, clock = node.membership(), CoordinatorClock(now)
        transport = Transport(membership.url)
        with visit(node.folder, clock) as agent:
            link = Link(
                FleetApi(FlowerPost(transport, membership.flower_key, clock)),
                app_of(node, agent),
                public_key=node.public_key,
                clock=clock,
                chance=random.random,
                standing=CoordinatorClient(transport, clock, node=node.name, key=membership.key).standing,
                node_id=agent.identity.flower_id,
                record=EventLog(node.folder / "events.jsonl", clock).record(node.name),
            )
            while not stop.is_set():
                due = link.step(time.monotonic())
                agent.learn()
                stop.wait(min(max(due - time.monotonic(), 0.0), PAUSE_S))
            link.close()
        transport.close()


def app_of(node: Node, agent: Agent) -> ClientApp:
    """The node's ClientApp, until its code fails."""
    sound, broken = client_app(agent), client_app(Broken())

    def either(message: Message, context: Context) -> Message:
        return (broken if node.broken else sound)(message, context)

    app = ClientApp()
    app.train("update")(either)
    app.evaluate("report")(either)
    return app
