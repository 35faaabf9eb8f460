"""Flower's Grid where replies come in their own time: what its two kinds have in common."""

import time
from collections.abc import Callable, Iterable, Iterator

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid


class WaitingGrid(Grid):
    """Looks for replies again and again; ``wait`` is what happens in between."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait = wait

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message, by Flower's older way."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Push messages, and hand over replies as they come, until all are there or it takes too long."""
        asked = {id_ for id_ in self.push_messages(messages) if id_}
        end = time.monotonic() + (float("inf") if timeout is None else timeout)
        while asked:
            for reply in self.pull_messages(asked):
                asked.discard(reply.metadata.reply_to_message_id)
                yield reply
            if not asked or time.monotonic() >= end:
                return
            self._wait()
