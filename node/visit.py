"""A node opened for as long as one ask takes, by a process that does all of it itself."""

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from fleet.errors import LinkError
from fleet.events import EventLog
from fleet.messages import UpdateInstruction
from node.agent import Agent
from node.coordinator_client import CoordinatorClient, CoordinatorClock
from node.enrolled import enrolled
from node.errand import code_of
from node.fetcher import HttpFetcher
from node.learning import Learning
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
    with enrolled(folder) as node, closing(node.transport()) as transport:
        with suppress(LinkError):
            clock.synchronise(transport)
        record = EventLog(folder / "events.jsonl", clock).record(node.identity.name)
        with (
            closing(Visit(node.client(clock, transport), node.membership.reference)) as workshop,
            closing(Agent(folder, node.identity.task, workshop=workshop, clock=clock, record=record)) as agent,
        ):
            yield agent
