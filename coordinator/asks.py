"""Whom to ask again, and when: at most one question is under way to a node."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta

INSTRUCTION_LIFE = timedelta(hours=1)


@dataclass(slots=True)
class Asks:
    """The questions of one round. Times are seconds of any clock that does not go back.

    A node that had nothing to give is asked again after ``again_s``, then after twice that, up to ``slowest_s``: it
    learns meanwhile.
    """

    again_s: float
    slowest_s: float
    _under_way: dict[str, int] = field(default_factory=dict)
    _next: dict[int, float] = field(default_factory=dict)
    _wait: dict[int, float] = field(default_factory=dict)

    def due(self, nodes: Iterable[int], now: float) -> list[int]:
        """Those of the nodes that should be asked now."""
        busy = set(self._under_way.values())
        return [node for node in nodes if node not in busy and self._next.get(node, now) <= now]

    def sent(self, message_id: str, node: int) -> None:
        """A question went out."""
        self._under_way[message_id] = node

    def under_way(self) -> list[str]:
        """Questions without an answer."""
        return list(self._under_way)

    def answered(self, message_id: str, now: float) -> int | None:
        """A question came back, whatever with; the node that it went to, which may be asked again later."""
        node = self._under_way.pop(message_id, None)
        if node is not None:
            wait = self._wait.get(node, self.again_s)
            self._next[node] = now + wait
            self._wait[node] = min(2 * wait, self.slowest_s)
        return node
