"""Flower's door to the coordinator: asks nodes, hands replies over, waits in between."""

import time
from collections.abc import Callable, Iterable

from flwr.app import DEFAULT_TTL, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from coordinator.asks import Asks
from coordinator.coordinator import Coordinator
from coordinator.round import RoundState
from fleet.signing import Sealed

UPDATE = "train.update"
REPORT = "evaluate.report"
SLOWEST_S = 15.0


def server_app(
    coordinator: Coordinator,
    *,
    pause: Callable[[], None],
    timeout_s: float,
    ask_s: float = DEFAULT_TTL,
    again_s: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
) -> ServerApp:
    """The ServerApp of one sync window: at most one round, then one question about the running rollout.

    Args:
        coordinator: Decides and remembers; this only carries messages.
        pause: Called between two looks at what came back, while nodes learn.
        timeout_s: How long reports on the rollout are waited for, in seconds.
        ask_s: How long a node has to answer before its question is void and it is asked anew, in seconds.
        again_s: How long a node that had nothing yet is left in peace at first, in seconds.
        clock: Seconds that only grow.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        _play_round(coordinator, grid, pause, Asks(again_s, SLOWEST_S), ask_s, clock)
        coordinator.offer_release()
        _ask_reports(coordinator, grid, timeout_s)
        coordinator.judge_rollout()

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
    while round_ is not None:
        names = {id_: name for name, id_ in coordinator.waiting_for(round_).items()}
        online = set(grid.get_node_ids())
        due = asks.due((id_ for id_ in names if id_ in online), clock())
        questions = _questions(due, UPDATE, coordinator.update_instruction(round_), ttl=ask_s)
        for message_id, id_ in zip(grid.push_messages(questions) if questions else [], due, strict=True):
            if message_id:  # Flower gives none to what it could not take
                asks.sent(message_id, id_)
        for reply in grid.pull_messages(asks.under_way()):
            asks.answered(reply.metadata.reply_to_message_id, clock())
            node = names.get(reply.metadata.src_node_id, "unknown")
            if update := _update(reply):
                coordinator.receive_update(round_, node, *update)
        if coordinator.settle_round(round_) is not RoundState.OPEN:
            return
        pause()


def _ask_reports(coordinator: Coordinator, grid: Grid, timeout_s: float) -> None:
    instruction = coordinator.report_instruction()
    if instruction is None:
        return
    names = {id_: name for name, id_ in coordinator.reporters().items()}
    for reply in _ask(grid, names, REPORT, coordinator.sealed(instruction), timeout_s):
        if not reply.has_error() and (report := _sealed(reply, "report")):
            coordinator.receive_report(instruction, names.get(reply.metadata.src_node_id, "unknown"), report)


def _ask(grid: Grid, names: Iterable[int], kind: str, instruction: Sealed, timeout_s: float) -> list[Message]:
    """Ask those of the nodes that are online, and wait for all of them, or until it takes too long."""
    online = set(grid.get_node_ids())
    messages = _questions((id_ for id_ in names if id_ in online), kind, instruction, ttl=max(timeout_s, 1.0))
    return list(grid.send_and_receive(messages, timeout=timeout_s)) if messages else []


def _questions(nodes: Iterable[int], kind: str, instruction: Sealed, *, ttl: float) -> list[Message]:
    """A list, for Flower iterates messages twice. A question is void after ``ttl`` seconds."""
    record = ConfigRecord({"body": instruction.body, "signature": instruction.signature})
    return [Message(RecordDict({"instruction": record}), id_, kind, ttl=ttl) for id_ in nodes]


def _sealed(reply: Message, name: str) -> Sealed | None:
    record = reply.content.config_records.get(name)
    if record is None:
        return None
    body, signature = record.get("body"), record.get("signature")
    return Sealed(body if isinstance(body, bytes) else b"", signature if isinstance(signature, bytes) else b"")


def _update(reply: Message) -> tuple[Sealed, str, bytes] | None:
    """The signed fields, the codec and the bytes of a reply; None for "nothing yet" and for errors."""
    if reply.has_error() or (sealed := _sealed(reply, "update")) is None:
        return None
    arrays = reply.content.array_records.get("delta", ArrayRecord())
    delta = arrays.get("delta")
    return (sealed, delta.stype, delta.data) if delta else (sealed, "", b"")
