"""What this node has already seen, kept for ever: versions and time never go below it."""

import sqlite3
from collections.abc import Mapping
from typing import Protocol

from node.store import transaction

CLOCK = "clock"  # when metadata was last verified, to the hour; seconds since 1970, UTC
SERVING = "serving"  # the newest release that everybody may serve
_CLOCK_STEP = 3600  # a floor an hour low costs an hour of freshness; a write a minute costs the flash
_HIGHEST = 2**63 - 1  # what SQLite can hold; a thief of a key may sign any number


class Floors(Protocol):
    """Numbers by name that only grow, and survive power cuts and the loss of every cache."""

    def read(self) -> dict[str, int]:
        """All floors; a name that was never raised is missing."""

    def raise_to(self, seen: Mapping[str, int]) -> None:
        """Raise each floor that is below ``seen``, all together; when this returns, they are on the disk."""


class SqliteFloors:
    """Floors in the node's store, whose connection commits durably (``node.store.open_store``)."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.execute("create table if not exists floor (name text primary key, value integer not null) strict")

    def read(self) -> dict[str, int]:
        """All floors; a name that was never raised is missing."""
        return dict(self._connection.execute("select name, value from floor"))

    def raise_to(self, seen: Mapping[str, int]) -> None:
        """Raise each floor that is below ``seen``, all together, durably; the clock alone is written hourly."""
        held = self.read()
        higher = {name: min(value, _HIGHEST) for name, value in seen.items() if value > held.get(name, -1)}
        if not higher.keys() - {CLOCK} and higher.get(CLOCK, 0) - held.get(CLOCK, 0) < _CLOCK_STEP:
            return
        with transaction(self._connection):
            self._connection.executemany(
                "insert into floor values (?, ?) on conflict (name) do update set value = max(value, excluded.value)",
                higher.items(),
            )
