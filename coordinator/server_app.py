"""Flower's door to the coordinator: asks nodes, hands replies over, waits in between."""

from collections.abc import Callable, Iterable

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from coordinator.coordinator import Coordinator
from coordinator.round import RoundState
from fleet.signing import Sealed

UPDATE = "train.update"
REPORT = "evaluate.report"


def server_app(coordinator: Coordinator, *, pause: Callable[[], None], timeout_s: float) -> ServerApp:
    """The ServerApp of one sync window: at most one round, then one question about the running rollout.

    Args:
        coordinator: Decides and remembers; this only carries messages.
        pause: Called between two asks of a round, while nodes learn.
        timeout_s: How long one ask waits for replies, in seconds.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        _play_round(coordinator, grid, pause, timeout_s)
        coordinator.offer_release()
        _ask_reports(coordinator, grid, timeout_s)
        coordinator.judge_rollout()

    return app


def _play_round(coordinator: Coordinator, grid: Grid, pause: Callable[[], None], timeout_s: float) -> None:
    round_ = coordinator.open_round()
    while round_ is not None:
        names = {id_: name for name, id_ in coordinator.waiting_for(round_).items()}
        for reply in _ask(grid, names, UPDATE, coordinator.update_instruction(round_), timeout_s):
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
    """Ask those of the nodes that are online. A list, for Flower iterates messages twice."""
    online = set(grid.get_node_ids())
    record = ConfigRecord({"body": instruction.body, "signature": instruction.signature})
    messages = [Message(RecordDict({"instruction": record}), id_, kind) for id_ in names if id_ in online]
    return list(grid.send_and_receive(messages, timeout=timeout_s)) if messages else []


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
