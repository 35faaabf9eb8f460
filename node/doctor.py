"""What would keep a node from answering, learning or syncing, and what to do about it."""

import importlib.util
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fleet.errors import ClockError, FleetError, LinkError, RefusedError, TamperedError, TrustError
from fleet.task import Task
from node.coordinator_client import CoordinatorClock
from node.enrolled import Enrolled, enrolled
from node.errand import code_of
from node.ledger import Ledger
from node.promotion import StageLog
from node.slots import Slots

LEAST_FREE_BYTES = 200_000_000
WORTH_TELLING_S = 5.0  # Flower refuses a node that is as fast as this


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: whether it is well, and what to do if it is not."""

    part: str
    well: bool
    message: str


def examine(folder: Path) -> list[Finding]:
    """Everything that can be looked at without a running node; nothing is changed.

    Raises:
        TrustError: The folder belongs to no node.
    """
    with enrolled(folder) as node:
        parts: dict[str, Callable[[], str]] = {
            "ledger": lambda: _ledger(Ledger(node.store, node.identity.budget)),
            "releases": lambda: _releases(StageLog(node.store), Slots(folder / "slots")),
            "disk": lambda: _disk(folder),
            "learning": lambda: _learning(node.membership.reference, node.identity.task),
            "coordinator": lambda: _coordinator(node),
        }
        return list(_findings(parts))


def _findings(parts: dict[str, Callable[[], str]]) -> Iterator[Finding]:
    for part, look in parts.items():
        try:
            yield Finding(part, True, look())
        except (FleetError, OSError, sqlite3.DatabaseError) as error:
            yield Finding(part, False, f"{error}{_advice(error)}")


def _advice(error: Exception) -> str:
    """What to do, where the error itself does not say."""
    match error:
        case TamperedError() | sqlite3.DatabaseError():
            return ": do not run this node, and ask the operator to revoke it"
        case RefusedError(code="revoked"):
            return ": that is for good; enrol anew, in another --folder"
        case RefusedError():
            return ": ask the operator"
        case LinkError() if not isinstance(error, ClockError):
            return ": is the coordinator running, and does the network reach it?"
    return ""


def _ledger(ledger: Ledger) -> str:
    head = ledger.verify()
    return f"{head.seq} charges, epsilon {ledger.epsilon():.3f} of {ledger.budget.epsilon:g}"


def _releases(stages: StageLog, slots: Slots) -> str:
    active, _ = stages.serving()
    if active is None:
        raise TrustError("no release answers yet: 'edgefleet node enrol INVITATION' goes on with it")
    if damaged := [number for number in sorted(stages.kept()) if not slots.is_whole(number)]:
        raise TrustError(f"release {damaged[0]} is damaged on the disk: it is fetched again at the next pull")
    return f"release {active} answers"


def _disk(folder: Path) -> str:
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE_BYTES:
        raise OSError(f"{free / 1e6:.0f} MB are free: answers go on, learning and releases stop; make room")
    return f"{free / 1e9:.1f} GB are free"


def _learning(reference: str, pinned: Task) -> str:
    if not reference:
        return "this node only answers: it was enrolled without --task"
    if missing := [name for name in ("torch", "opacus", "flwr") if importlib.util.find_spec(name) is None]:
        raise FleetError(f"{', '.join(missing)} missing: pip install 'edgefleet[train]'")
    code_of(reference, pinned)
    return f"{reference} is the task"


def _coordinator(node: Enrolled) -> str:
    clock = CoordinatorClock(lambda: datetime.now(UTC))
    with closing(node.transport()) as transport:
        offset_s = clock.synchronise(transport).total_seconds()
        standing = node.client(clock, transport).standing()
    skew = f"; this clock is {abs(offset_s):.0f} s {'slow' if offset_s > 0 else 'fast'}, which is corrected for"
    open_round = f"round {standing.round} is open" if standing.round is not None else "no round is open"
    return f"{node.membership.url} answers, {open_round}{skew if abs(offset_s) >= WORTH_TELLING_S else ''}"
