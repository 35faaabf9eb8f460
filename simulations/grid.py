"""Flower's Grid in one process: the same ServerApp and ClientApps as in the field, without a network."""

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping
from enum import Enum

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fleet import flwr_compat
from fleet.flwr_compat import Run

CRASHED = 2


class Fate(Enum):
    """What becomes of a message to a node."""

    DELIVERED = "delivered"
    OFFLINE = "offline"
    LATE = "late"
    TWICE = "twice"


Link = Callable[[int], Fate]


def always(node_id: int) -> Fate:
    """A perfect link."""
    return Fate.DELIVERED


class InProcessGrid(Grid):
    """Delivers copies of messages to ClientApps by Flower's node id, in order.

    A node that is offline is not listed and gets nothing. A late reply arrives one pull later than others. A message
    delivered twice is answered twice, as a network that retries would have it.
    """

    def __init__(self, apps: Mapping[int, ClientApp], *, link: Link = always, run_id: int = 1) -> None:
        flwr_compat.identify(run_id)
        self._run = flwr_compat.empty_run(run_id)
        self._apps = dict(apps)
        self._link = link
        self._ids = itertools.count(1)
        self._contexts: dict[int, Context] = {}
        self._replies: dict[str, tuple[Fate, list[Message]]] = {}
        self._late: list[Message] = []

    def connect(self, node_id: int, app: ClientApp) -> None:
        """Let a node join the network."""
        self._apps[node_id] = app

    def set_run(self, run: Run) -> None:
        """Play another run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run being played."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message, by Flower's older way."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Ids of the nodes that are online."""
        return [node_id for node_id in self._apps if self._link(node_id) is not Fate.OFFLINE]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver messages; the ids under which replies can be pulled."""
        ids = []
        for message in messages:
            message_id = f"message-{next(self._ids)}"
            flwr_compat.number(message, message_id)
            self._deliver(message, message_id)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies to messages, each once, after those that were late when messages were pulled before."""
        arrived, self._late = self._late, []
        for message_id in message_ids:
            fate, replies = self._replies.pop(message_id, (Fate.DELIVERED, []))
            (self._late if fate is Fate.LATE else arrived).extend(replies)
        return arrived

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Deliver messages and collect what came back, with what was late before."""
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, message: Message, message_id: str) -> None:
        node_id = message.metadata.dst_node_id
        fate = self._link(node_id)
        if fate is not Fate.OFFLINE:
            replies = [self._answer(node_id, message) for _ in range(2 if fate is Fate.TWICE else 1)]
            self._replies[message_id] = fate, replies

    def _answer(self, node_id: int, message: Message) -> Message:
        try:
            return self._apps[node_id](copy.deepcopy(message), self._context(node_id))
        except Exception as error:  # noqa: BLE001 - whatever a ClientApp raises, Flower answers with an error
            return Message(Error(CRASHED, repr(error)), reply_to=message)

    def _context(self, node_id: int) -> Context:
        if node_id not in self._contexts:
            self._contexts[node_id] = flwr_compat.context(self._run.run_id, node_id)
        return self._contexts[node_id]
