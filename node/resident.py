"""A node's one resident process: it answers, keeps its link, and minds its releases; the heavy work is children's."""

import math
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleet import durable
from fleet.__main__ import NAME
from fleet.errors import TrustError, UsageError
from fleet.events import EventLog, Record
from fleet.messages import UpdateInstruction
from node.agent import CANNOT_LEARN, Agent
from node.desk import Desk
from node.gauges import NodeGauges
from node.http_connection import Limits
from node.http_server import HttpServer
from node.identity import read_identity
from node.learning import Learning
from node.local_api import LocalApi
from node.store import open_store

if TYPE_CHECKING:  # a node that only answers leaves all of this where it is: 20 MB
    from node.children import Children
    from node.coordinator_client import CoordinatorClock
    from node.link import Link

BUSY_S = 0.5  # between two looks at what labels say of a release on trial
IDLE_S = 5.0
LOCK = "node.lock"
FOR_PEOPLE = frozenset({"shut-out", CANNOT_LEARN})


class Resident:
    """One node over its folder, from ``start`` to ``stop``. Nothing that fails elsewhere keeps it from answering.

    Args:
        listen: Where the local API is, as in ``node.address.parse``.
        online: Whether there is a coordinator to talk to.
        daily_bytes: What a metered link may carry a day; None for any number.
        version: Of this distribution, for whoever asks.
    """

    def __init__(self, folder: Path, *, listen: str, online: bool, daily_bytes: int | None, version: str) -> None:
        identity = read_identity(folder)
        if identity is None:
            raise TrustError(f"{folder} was never enrolled: 'edgefleet node enrol INVITATION' goes on with it")
        hands = _hands(daily_bytes) if online else None
        clock = hands[0] if hands else _now
        self._children = hands[1] if hands else None
        self._record = _told(EventLog(folder / "events.jsonl", clock).record(identity.name))
        workshop = self._children or _Nothing()
        self.agent = Agent(folder, identity.task, workshop=workshop, clock=clock, record=self._record)
        self._desk = Desk(
            folder / "node.db",
            identity.task.signature,
            self.agent.serving,
            partition_size=identity.settings.privacy.partition_examples,
            record=self._record,
        )
        gauges = NodeGauges(folder, self.agent.ledger.budget, clock)
        self._server = HttpServer(
            listen,
            LocalApi(self._desk, identity.task.name, version=version, gauges=gauges.read, record=self._record),
            Limits.for_reading(math.prod(identity.task.signature.shape)),
        )
        self._stop, self._wake = threading.Event(), threading.Event()
        self._news, self._wished = threading.Event(), threading.Event()
        self._link = self._linked(hands[0], daily_bytes) if hands else None
        self._shelf = 0
        self._faults: dict[str, str] = {}

    @property
    def address(self) -> str:
        """Where the local API is found."""
        return self._server.address

    def run(self) -> None:
        """Serve until ``stop``; the caller's thread minds the releases."""
        self._server.start()
        self._record("started", address=self.address)
        link = self._link
        work = {"pull": self._pull} | ({"link": lambda: self._talk(link), "learn": self._learn} if link else {})
        threads = [threading.Thread(target=target, name=name) for name, target in work.items()]
        for thread in threads:
            thread.start()
        try:
            while not self._stop.is_set():
                self._wake.wait(self._survived("settle", self._settle))
                self._wake.clear()
        finally:
            self.stop()
            for thread in threads:
                thread.join()
            self._server.close()
            self._desk.close()
            self.agent.close()
            self._record("stopped")

    def stop(self) -> None:
        """End soon; what a child did durably stays."""
        self._stop.set()
        self._wake.set()
        self._news.set()
        self._wished.set()
        if self._children:
            self._children.stop()

    def _pull(self) -> None:
        """The shelf is looked at beside everything else: a network that hangs holds up no way back."""
        while not self._stop.is_set():
            self._survived("pull", self.agent.pull)
            self._wake.set()
            self._news.wait(IDLE_S)
            self._news.clear()

    def _learn(self) -> None:
        """Rounds are learned for beside everything else: a session takes seconds, on small devices minutes."""
        while self._wished.wait() and not self._stop.is_set():
            self._wished.clear()
            self._survived("learn", self.agent.learn)

    def _survived(self, name: str, part: Callable[[], float | None]) -> float:
        """In how many seconds to come back; a fault of ours, or of a task's code, ends no thread and is said once."""
        try:
            return part() or 0.0
        except Exception as error:  # noqa: BLE001 - whatever it is, answers go on
            if self._faults.get(name) != (reason := repr(error)):
                self._faults[name] = reason
                self._record("failed", part=name, reason=reason)
            return IDLE_S

    def _settle(self) -> float:
        self.agent.settle()
        return BUSY_S if self.agent.on_trial else IDLE_S

    def _talk(self, link: "Link") -> None:
        while not self._stop.is_set():
            self._stop.wait(self._survived("link", lambda: self._exchange(link)))
        link.close()

    def _exchange(self, link: "Link") -> float:
        due = link.step(time.monotonic())
        if (standing := link.standing) and standing.shelf != self._shelf:
            self._shelf = standing.shelf
            self.agent.pull_soon()
            self._news.set()
        if self.agent.wished:
            self._wished.set()
        return max(0.0, due - time.monotonic())

    def _linked(self, clock: "CoordinatorClock", daily_bytes: int | None) -> "Link":
        from fleet.enrolment import pem
        from fleet.flwr_compat import FleetApi, quieten
        from node.allowance import Allowance
        from node.client_app import client_app
        from node.enrolled import Enrolled
        from node.link import FlowerPost, Link
        from node.membership import Membership

        quieten()
        store = open_store(self.agent.folder / "node.db")  # no other thread uses this connection
        membership = Membership.load(store)
        if membership is None:
            raise TrustError(f"{self.agent.name} knows no coordinator: run it with --offline")
        node = Enrolled(store, self.agent.identity, membership)
        transport = node.transport(spend=Allowance(store, daily_bytes, clock).spend)
        return Link(
            FleetApi(FlowerPost(transport, membership.flower_key, clock)),
            client_app(self.agent),
            public_key=pem(membership.flower_key.public_key()),
            clock=clock,
            standing=node.client(clock, transport).standing,
            chance=random.random,
            node_id=node.identity.flower_id or None,
            record=self._record,
        )


def _told(record: Record) -> Record:
    """The same, and what only a person can mend is said to whoever started the node."""

    def tell(event: str, **fields: Any) -> None:
        record(event, **fields)
        if event in FOR_PEOPLE:
            with suppress(OSError):  # nobody may be there any more
                print(f"{NAME}: {event}: {fields['reason']}", file=sys.stderr, flush=True)

    return tell


def _now() -> datetime:
    return datetime.now(UTC)


def _hands(daily_bytes: int | None) -> "tuple[CoordinatorClock, Children]":
    """The coordinator's time, and the children that work by it."""
    from node.children import Children
    from node.coordinator_client import CoordinatorClock

    clock = CoordinatorClock(_now)
    return clock, Children(lambda: clock.offset, daily_bytes=daily_bytes)


class _Nothing:
    """The workshop of a node without a coordinator: there is nothing to pull, and nobody to learn for."""

    def pull(self, agent: Agent) -> None: ...

    def learn(self, node: Learning, wish: UpdateInstruction) -> None: ...


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Hold a node's folder: one resident process runs it at a time.

    Raises:
        UsageError: Another process runs it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(durable.held(folder / LOCK))
        except BlockingIOError as error:
            raise UsageError(f"{folder} is run by another process") from error
        yield
