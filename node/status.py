"""How a node stands, read from its folder."""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fleet.errors import TrustError
from node.buffer import Buffer
from node.floors import CLOCK, SqliteFloors
from node.identity import Identity, require_node
from node.ledger import Ledger
from node.membership import Membership
from node.promotion import WATCH, StageLog
from node.shadow import Shadow
from node.store import open_store


def status(folder: Path) -> dict[str, Any]:
    """Figures by name, for people and for programs; nothing is changed.

    Raises:
        TamperedError: The store or the ledger was altered.
        TrustError: The folder belongs to no node.
    """
    require_node(folder)
    with closing(open_store(folder / "node.db")) as store:
        identity, membership = Identity.load(store), Membership.load(store)
        if identity is None:
            raise TrustError(f"{folder} was never enrolled: 'edgefleet node enrol INVITATION' goes on with it")
        return _of(store, identity, membership)


def _of(store: sqlite3.Connection, identity: Identity, membership: Membership | None) -> dict[str, Any]:
    privacy = identity.settings.privacy
    ledger = Ledger(store, identity.budget)
    stages = StageLog(store)
    active, previous = stages.serving()
    number, stage = stages.candidate() or (None, None)
    watch = WATCH.get(stage) if stage else None
    windows = Shadow(store, identity.task.signature).labelled(number, watch) if number is not None and watch else None
    buffer = Buffer(store, identity.task.signature, partition_size=privacy.partition_examples)
    return {
        "name": identity.name,
        "task": identity.task.name,
        "coordinator": membership.url if membership else None,
        "learns": bool(membership and membership.reference),
        "release": active,
        "previous_release": previous,
        "candidate": number,
        "stage": stage.value if stage else None,
        "labelled_windows": windows,
        "epsilon_spent": round(ledger.epsilon(), 6),
        "epsilon_budget": privacy.epsilon,
        "unit": identity.task.unit.name,
        "examples": len(buffer),
        "updates_sent": _count(store, "session where round is not null"),
        "updates_waiting": _count(store, "session where round is null"),
        "last_pull": _last_pull(store),
        "answers": _count(store, "reading"),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _last_pull(store: sqlite3.Connection) -> str | None:
    """When the coordinator's metadata was last verified here, to the hour."""
    seconds = SqliteFloors(store).read().get(CLOCK)
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _count(store: sqlite3.Connection, what: str) -> int:
    return int(store.execute(f"select count(*) from {what}").fetchone()[0])  # noqa: S608 - one of ours, above
