"""Where a node stands, read from its folder when somebody asks: release, budget, buffer, outbox."""

import sqlite3
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from fleet.errors import TamperedError
from fleet.privacy.gaussian import Budget
from node.floors import CLOCK, SERVING, SqliteFloors
from node.ledger import Ledger
from node.metrics import Gauge
from node.promotion import StageLog
from node.store import open_store


class NodeGauges:
    """Figures of one node's folder. A store that cannot be read is itself a figure."""

    def __init__(self, folder: Path, budget: Budget, clock: Callable[[], datetime]) -> None:
        self._folder = folder
        self._budget = budget
        self._clock = clock

    def read(self) -> list[Gauge]:
        """What is known now."""
        try:
            store = open_store(self._folder / "node.db")
            try:
                return [*self._of(store), _readable(True)]
            finally:
                store.close()
        except (sqlite3.Error, OSError, TamperedError):
            return [_readable(False)]

    def _of(self, store: sqlite3.Connection) -> Iterator[Gauge]:
        active, floors = StageLog(store).serving()[0], SqliteFloors(store).read()
        if active is not None:
            behind = max(0, floors.get(SERVING, 0) - active)
            yield Gauge("edgefleet_active_release", "Number of the release that answers.", active)
            yield Gauge("edgefleet_active_release_age_seconds", "Time since it began to answer here.", self._age_s())
            yield Gauge("edgefleet_releases_behind", "How far its number is below the one for everybody.", behind)
        if CLOCK in floors:
            age_s = max(0.0, self._clock().timestamp() - floors[CLOCK])
            yield Gauge("edgefleet_last_pull_age_seconds", "Time since the last pull; up to two hours is usual.", age_s)
        yield Gauge("edgefleet_epsilon_spent", "Largest epsilon of a partition.", Ledger(store, self._budget).epsilon())
        yield Gauge("edgefleet_epsilon_budget", "The epsilon that no partition may pass.", self._budget.epsilon)
        yield Gauge("edgefleet_buffer_examples", "Examples kept for learning.", _count(store, "example"))
        yield Gauge(
            "edgefleet_outbox_sessions", "Updates waiting for a round.", _count(store, "session where round is null")
        )

    def _age_s(self) -> float:
        """The pointer is written once, when it moves."""
        since = (self._folder / "slots" / "active.json").stat().st_mtime
        return max(0.0, self._clock().timestamp() - since)


def _count(store: sqlite3.Connection, what: str) -> int:
    return int(store.execute(f"select count(*) from {what}").fetchone()[0])  # noqa: S608 - one of ours, above


def _readable(value: bool) -> Gauge:
    return Gauge("edgefleet_store_readable", "1 if the node's store can be read.", int(value))
