"""A node opened for as long as one ask takes, by a process that does all of it itself."""

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from fleet.errors import LinkError, TrustError
from fleet.events import EventLog
from fleet.messages import UpdateInstruction
from node.agent import Agent
from node.coordinator_client import CoordinatorClient, CoordinatorClock
from node.errand import code_of
from node.fetcher import HttpFetcher
from node.identity import Identity
from node.learning import Learning
from node.membership import Membership
from node.store import open_store
from node.transport import Transport
from node.workshop import InProcess


class Visit(InProcess):
    """Learns here, with the code of the task, which a node needs for nothing else."""

    def __init__(self, client: CoordinatorClient, reference: str) -> None:
        super().__init__(HttpFetcher(client))
        self._reference = reference
        self._learning: Learning | None = None

    def learn(self, node: Learning, wish: UpdateInstruction) -> None:
        """As ``InProcess.learn``.

        Raises:
            TaskError: The task's code is not on this device.
        """
        if self._learning is None:
            self._learning = Learning(node.folder, code_of(self._reference, node.task), clock=node.clock)
        super().learn(self._learning, wish)

    def close(self) -> None:
        """Let go of the node's store."""
        if self._learning is not None:
            self._learning.close()


@contextmanager
def visit(folder: Path, clock: CoordinatorClock) -> Iterator[Agent]:
    """The enrolled node of a folder; ``clock`` is corrected first, if the coordinator can be reached.

    Raises:
        TrustError: The folder was never enrolled.
    """
    with closing(open_store(folder / "node.db")) as store:
        identity, membership = Identity.load(store), Membership.load(store)
    if identity is None or membership is None:
        raise TrustError(f"{folder} was never enrolled")
    with closing(Transport(membership.url, authority=membership.authority or None)) as transport:
        with suppress(LinkError):
            clock.synchronise(transport)
        client = CoordinatorClient(transport, clock, node=identity.name, key=identity.key)
        record = EventLog(folder / "events.jsonl", clock).record(identity.name)
        with (
            closing(Visit(client, membership.reference)) as workshop,
            closing(Agent(folder, identity.task, workshop=workshop, clock=clock, record=record)) as agent,
        ):
            yield agent
