"""What would keep a node from answering, learning or syncing, and what to do about it."""

import importlib.util
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fleet.errors import ClockError, FleetError, LinkError, RefusedError, TamperedError, TrustError
from fleet.privacy.gaussian import Budget
from node.coordinator_client import CoordinatorClient, CoordinatorClock
from node.errand import code_of
from node.identity import Identity
from node.ledger import Ledger
from node.membership import Membership
from node.promotion import StageLog
from node.slots import Slots
from node.store import open_store
from node.transport import Transport

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
    if not (folder / "node.db").exists():
        raise TrustError(f"{folder} is no node of a fleet yet: 'edgefleet node enrol INVITATION' makes it one")
    store = open_store(folder / "node.db")
    try:
        identity, membership = Identity.load(store), Membership.load(store)
        if identity is None or membership is None:
            raise TrustError(f"{folder} was never enrolled: 'edgefleet node enrol INVITATION' goes on with it")
        parts: dict[str, Callable[[], str]] = {
            "ledger": lambda: _ledger(Ledger(store, _budget(identity))),
            "releases": lambda: _releases(StageLog(store), Slots(folder / "slots")),
            "disk": lambda: _disk(folder),
            "learning": lambda: _learning(membership, identity),
            "coordinator": lambda: _coordinator(membership, identity),
        }
        return list(_findings(parts))
    finally:
        store.close()


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


def _budget(identity: Identity) -> Budget:
    privacy = identity.settings.privacy
    return Budget(privacy.epsilon, privacy.delta, identity.task.unit.group)


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


def _learning(membership: Membership, identity: Identity) -> str:
    if not membership.reference:
        return "this node only answers: it was enrolled without --task"
    if missing := [name for name in ("torch", "opacus", "flwr") if importlib.util.find_spec(name) is None]:
        raise FleetError(f"{', '.join(missing)} missing: pip install 'edgefleet[train]'")
    code_of(membership.reference, identity.task)
    return f"{membership.reference} is the task"


def _coordinator(membership: Membership, identity: Identity) -> str:
    transport = Transport(membership.url, authority=membership.authority or None)
    try:
        clock = CoordinatorClock(lambda: datetime.now(UTC))
        offset_s = clock.synchronise(transport).total_seconds()
        client = CoordinatorClient(transport, clock, node=identity.name, key=identity.key)
        standing = client.standing()
    finally:
        transport.close()
    skew = f"; this clock is {abs(offset_s):.0f} s {'slow' if offset_s > 0 else 'fast'}, which is corrected for"
    open_round = f"round {standing.round} is open" if standing.round is not None else "no round is open"
    return f"{membership.url} answers, {open_round}{skew if abs(offset_s) >= WORTH_TELLING_S else ''}"
