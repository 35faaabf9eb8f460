"""The coordinator's memory: one database whose every step is a transaction, in four parts."""

import sqlite3
from typing import Any

from sqlalchemy import Connection, Engine, ExceptionContext, create_engine, event, insert, select

from coordinator import tables
from coordinator.invitations import Invitations
from coordinator.releases import Releases
from coordinator.roster import Roster
from coordinator.rounds import Rounds
from fleet.errors import TamperedError, UsageError

VERSION = 1  # of the schema; a change to it must read what the one before wrote


class Registry:
    """What happened in the fleet, durably. Its parts take and return values, never rows or sessions."""

    def __init__(self, url: str) -> None:
        """Open or make the database at an SQLAlchemy URL, such as ``sqlite:///registry.db``.

        Raises:
            TamperedError: The file is no database, or a damaged one; later steps raise it too.
            UsageError: It was written by an edgefleet whose schema is another.
        """
        self._engine = _engine(url)
        with self._engine.begin() as connection:
            _make_tables(connection)
        self.roster = Roster(self._engine)
        self.invitations = Invitations(self._engine)
        self.rounds = Rounds(self._engine)
        self.releases = Releases(self._engine)

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()


def _make_tables(connection: Connection) -> None:
    tables.schema.create(connection, checkfirst=True)
    found = connection.execute(select(tables.schema.c.version)).scalar_one_or_none()
    if found is None:
        connection.execute(insert(tables.schema).values(version=VERSION))
    elif found != VERSION:
        raise UsageError(f"the registry has schema {found}, this edgefleet reads {VERSION}: run the one that wrote it")
    tables.metadata.create_all(connection)


def _engine(url: str) -> Engine:
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _make_durable)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("begin immediate"))
        event.listen(engine, "handle_error", _damage)
    return engine


def _damage(context: ExceptionContext) -> TamperedError | None:
    """SQLite raises the class itself where the file is damaged, and its subclasses for everything else."""
    error = context.original_exception
    return TamperedError(f"the registry cannot be read: {error}") if type(error) is sqlite3.DatabaseError else None


def _make_durable(connection: Any, record: object) -> None:
    """A commit that returned survives a power cut; and transactions are ours, not the driver's."""
    connection.isolation_level = None
    connection.execute("pragma journal_mode=wal")
    connection.execute("pragma synchronous=full")
    connection.execute("pragma foreign_keys=on")
