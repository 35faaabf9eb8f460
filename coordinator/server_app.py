"""Flower's door to the coordinator: asks nodes, hands replies over, waits in between."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from flwr.app import DEFAULT_TTL, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from coordinator.asks import Asks
from coordinator.coordinator import Coordinator
from coordinator.round import RoundState
from fleet.signing import Sealed

UPDATE = "train.update"
REPORT = "evaluate.report"
SLOWEST_S = 15.0
SLOWEST_REPORT_S = 5.0
LOOK_S = 0.05


class Reports:
    """Asks nodes about the running rollout, a look at a time, whether a round is open meanwhile or not.

    Args:
        ask_s: How long a node has to answer before its question is void and it is asked anew, in seconds.
        again_s: How long a node that had nothing yet is left in peace at first, in seconds.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        *,
        ask_s: float = DEFAULT_TTL,
        again_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._coordinator = coordinator
        self._ask_s = ask_s
        self._again_s = again_s
        self._clock = clock
        self._about: tuple[int, str] | None = None
        self._asks = Asks(again_s, SLOWEST_REPORT_S)

    @property
    def under_way(self) -> bool:
        """Whether questions were not answered yet."""
        return self._about is not None and bool(self._asks.under_way())

    def look(self, grid: Grid) -> bool:
        """Ask whom it is time to ask, take what came back; whether questions are under way."""
        instruction = self._coordinator.delivery.question()
        if instruction is None:
            self._about = None
            return False
        if self._about != (instruction.release, instruction.watch):
            self._about, self._asks = (instruction.release, instruction.watch), Asks(self._again_s, SLOWEST_REPORT_S)
        names = {id_: name for name, id_ in self._coordinator.delivery.reporters().items()}
        sealed = self._coordinator.delivery.sealed(instruction)
        for node, reply in _looked(grid, self._asks, names, REPORT, sealed, self._ask_s, self._clock):
            report = None if reply.has_error() else reply.content.config_records.get("report")
            if report is not None:
                self._coordinator.delivery.receive(instruction, node, Sealed.of(report))
        return self.under_way


def server_app(
    coordinator: Coordinator,
    *,
    pause: Callable[[], None],
    reports: Reports | None = None,
    timeout_s: float = 0.0,
    ask_s: float = DEFAULT_TTL,
    again_s: float = 0.0,
    slowest_s: float = SLOWEST_S,
    clock: Callable[[], float] = time.monotonic,
) -> ServerApp:
    """The ServerApp of one sync window: at most one round, then one question about the running rollout.

    Args:
        coordinator: Decides and remembers; this only carries messages.
        pause: Called between two looks at what came back, while nodes learn.
        reports: Who asks about the rollout, if somebody else does so during rounds too.
        timeout_s: How long reports on the rollout are waited for, in seconds; 0 takes what is there at once.
        ask_s: How long a node has to answer before its question is void and it is asked anew, in seconds.
        again_s: How long a node that had nothing yet is left in peace at first, in seconds.
        slowest_s: How long at last.
        clock: Seconds that only grow.
    """
    app = ServerApp()
    rollout = reports or Reports(coordinator, clock=clock)

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        _play_round(coordinator, grid, pause, Asks(again_s, slowest_s), ask_s, clock)
        coordinator.delivery.offer_newest()
        until = clock() + timeout_s
        while rollout.look(grid) and clock() < until:
            time.sleep(LOOK_S)
        coordinator.delivery.judge()

    return app


def _play_round(
    coordinator: Coordinator,
    grid: Grid,
    pause: Callable[[], None],
    asks: Asks,
    ask_s: float,
    clock: Callable[[], float],
) -> None:
    """One slow node holds nobody up: each is asked, and asked again, on its own."""
    round_ = coordinator.open_round()
    failed: set[str] = set()
    while round_ is not None:
        names = {id_: name for name, id_ in coordinator.waiting_for(round_).items()}
        instruction = coordinator.update_instruction(round_)
        for node, reply in _looked(grid, asks, names, UPDATE, instruction, ask_s, clock):
            if update := _update(reply):
                coordinator.receive_update(round_, node, *update)
            elif reply.has_error() and node not in failed:
                failed.add(node)  # it is asked again, and is not worth a line each time
                coordinator.note_failure(round_, node, str(reply.error.reason))
        if coordinator.settle_round(round_) is not RoundState.OPEN:
            return
        pause()


def _looked(
    grid: Grid,
    asks: Asks,
    names: Mapping[int, str],
    kind: str,
    instruction: Sealed,
    ask_s: float,
    clock: Callable[[], float],
) -> Iterator[tuple[str, Message]]:
    """Ask those nodes that are online and whose turn it is; the replies that have come, and whom we had asked.

    Who sent a reply says nothing of that: where a node went away, Flower itself replies. Of a question of an earlier
    round, it is all that is known.
    """
    online = set(grid.get_node_ids())
    due = asks.due((id_ for id_ in names if id_ in online), clock())
    questions = _questions(due, kind, instruction, ttl=ask_s)
    for message_id, id_ in zip(grid.push_messages(questions) if questions else [], due, strict=True):
        if message_id:  # Flower gives none to what it could not take
            asks.sent(message_id, id_)
    for reply in grid.pull_messages(asks.under_way()):
        asked = asks.answered(reply.metadata.reply_to_message_id, clock())
        yield names.get(reply.metadata.src_node_id if asked is None else asked, "unknown"), reply  # or just revoked


def _questions(nodes: Iterable[int], kind: str, instruction: Sealed, *, ttl: float) -> list[Message]:
    """A list, for Flower iterates messages twice. A question is void after ``ttl`` seconds."""
    record = ConfigRecord({"body": instruction.body, "signature": instruction.signature})
    return [Message(RecordDict({"instruction": record}), id_, kind, ttl=ttl) for id_ in nodes]


def _update(reply: Message) -> tuple[Sealed, str, bytes] | None:
    """The signed fields, the codec and the bytes of a reply; None for "nothing yet" and for errors."""
    record = None if reply.has_error() else reply.content.config_records.get("update")
    if record is None:
        return None
    arrays = reply.content.array_records.get("delta", ArrayRecord())
    delta = arrays.get("delta")
    return (Sealed.of(record), delta.stype, delta.data) if delta else (Sealed.of(record), "", b"")
