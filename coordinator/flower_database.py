"""Flower's database before Flower opens it: a transport and never the truth, so that a damaged one stops nobody."""

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from fleet.durable import is_damaged
from fleet.events import Record


def set_aside_if_damaged(database: Path, record: Record) -> None:
    """Rename a file that SQLite cannot read, with what lies beside it, to ``NAME.damaged``; the next one is empty."""
    if not database.exists() or (reason := _damage(database)) is None:
        return
    for suffix in ("-wal", "-shm", ""):  # the file itself last: an old log beside a new file would be played into it
        with suppress(FileNotFoundError):
            Path(f"{database}{suffix}").replace(f"{database}.damaged{suffix}")
    record("flower-database-lost", path=f"{database}.damaged", reason=reason)


def _damage(database: Path) -> str | None:
    try:
        with closing(sqlite3.connect(database)) as connection:
            found = str(connection.execute("pragma quick_check(1)").fetchone()[0])
    except sqlite3.DatabaseError as error:
        if not is_damaged(error):
            raise
        return str(error)
    return None if found == "ok" else found
