"""How many bytes a metered link may still carry today; kept on the disk, so that a restart grants nothing."""

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime

from fleet.errors import AllowanceError
from node.store import transaction

_SCHEMA = "create table if not exists traffic (day text primary key, bytes integer not null) strict"
_BLOCK = 65_536
_KEPT_DAYS = 31


class Allowance:
    """A daily budget of bytes, by the day of UTC.

    Bytes are written down in blocks before they are used: a crash may waste the rest of a block and never grants
    one, and a write to the flash pays for many requests. Several processes may draw on the same store, each
    through its own connection.

    Args:
        store: A connection to the node's store that no other thread uses.
        limit: Bytes a day; None means unmetered, and nothing is ever written.
        clock: The time now, in UTC.
    """

    def __init__(self, store: sqlite3.Connection, limit: int | None, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._limit = limit
        self._clock = clock
        self._day = ""
        self._left = 0
        if limit is not None:
            self._block = max(1, min(_BLOCK, limit // 64))
            store.execute(_SCHEMA)

    def spend(self, count: int) -> None:
        """Account for ``count`` bytes before they are carried, or as they arrive.

        Raises:
            AllowanceError: They are more than is left for today.
        """
        if self._limit is None:
            return
        missing = count - self._of_today()
        if missing > 0:
            self._reserve(max(missing, self._block), missing)
        self._left -= count

    def _of_today(self) -> int:
        day = self._clock().astimezone(UTC).date().isoformat()
        if day != self._day:
            self._day, self._left = day, 0
        return self._left

    def _written(self, day: str) -> int:
        row = self._store.execute("select bytes from traffic where day = ?", (day,)).fetchone()
        return row[0] if row else 0

    def _reserve(self, count: int, missing: int) -> None:
        with transaction(self._store):
            free = (self._limit or 0) - self._written(self._day)
            if missing > free:
                raise AllowanceError(f"the {self._limit} bytes that this link may carry on {self._day} are used up")
            self._store.execute(
                "insert into traffic values (?, ?) on conflict (day) do update set bytes = bytes + excluded.bytes",
                (self._day, min(count, free)),
            )
            self._store.execute(
                "delete from traffic where day not in (select day from traffic order by day desc limit ?)",
                (_KEPT_DAYS,),
            )
        self._left += min(count, free)
