"""The one SQLite file that holds a node's state, apart from its slots."""

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fleet.durable import is_damaged, make_folder
from fleet.errors import StoreError, TamperedError, UsageError

# Primary codes of SQLite that say nothing of what is in the file.
_NOT_NOW = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_READONLY,
}
LOCK_TIMEOUT_S = 30.0
VERSION = 1  # of the schema; a change to it must read what the one before wrote
_SCHEMA = """
create table if not exists identity (name text primary key, value blob not null);
create table if not exists charge (
    seq integer primary key, partition text not null, purpose text not null,
    mu2 integer not null check (mu2 > 0), previous text not null, hash text not null unique);
create trigger if not exists charge_kept before update on charge begin select raise(abort, 'append only'); end;
create trigger if not exists charge_stays before delete on charge begin select raise(abort, 'append only'); end;
create table if not exists example (
    seq integer primary key, partition integer not null, x blob not null, y integer not null);
create index if not exists example_partition on example (partition);
create table if not exists reading (
    seq integer primary key, x blob, release integer not null, answer integer not null,
    rival integer, rival_answer integer, label integer, report text,
    watch integer, lesson integer not null default 0, request text, size integer);
create index if not exists reading_request on reading (request) where request is not null;
create table if not exists session (
    seq integer primary key, base integer not null, base_digest text not null, mu2 integer not null,
    payload blob not null, round integer unique, body blob, signature blob);
create table if not exists report (
    release integer not null, watch text not null, body blob not null, signature blob not null,
    primary key (release, watch));
create table if not exists stage (
    seq integer primary key, release integer not null, stage text not null, reason text not null,
    reading integer not null);
create trigger if not exists stage_kept before update on stage begin select raise(abort, 'append only'); end;
create trigger if not exists stage_stays before delete on stage begin select raise(abort, 'append only'); end;
"""


def open_store(path: Path) -> sqlite3.Connection:
    """A connection in autocommit whose commits are on the disk when they return (WAL, ``synchronous=FULL``).

    Raises:
        StoreError: The device has no room for the files beside it, or does not let it be opened now.
        TamperedError: The file is no database of ours.
        UsageError: It was written by an edgefleet whose schema is another.
    """
    make_folder(path.parent)
    if not path.exists():
        path.touch(mode=0o600)  # before SQLite makes its side files after this one's permissions
    try:
        return _opened(path)
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NOT_NOW:
            raise StoreError(f"{path} cannot be opened now: {error}; is there room on the disk?") from error
        raise TamperedError(f"{path} cannot be read as a node's store: {error}") from error


def _opened(path: Path) -> sqlite3.Connection:
    with ExitStack() as stack:
        connection = sqlite3.connect(path, isolation_level=None, timeout=LOCK_TIMEOUT_S, check_same_thread=False)
        stack.callback(connection.close)
        connection.execute("pragma journal_mode=wal")
        connection.execute("pragma synchronous=full")
        connection.execute("pragma recursive_triggers=on")  # or "insert or replace" would delete past the triggers
        found = connection.execute("pragma user_version").fetchone()[0]
        if found not in (0, VERSION):
            raise UsageError(f"{path} has schema {found}, this edgefleet reads {VERSION}: run the one that wrote it")
        connection.executescript(_SCHEMA)
        if found == 0:
            connection.execute(f"pragma user_version={VERSION}")
        stack.pop_all()
    return connection


@contextmanager
def undamaged(path: Path) -> Iterator[None]:
    """Within it, a store that proves to be damaged after it was opened is named.

    Raises:
        TamperedError: A page of it cannot be read.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        if not is_damaged(error):
            raise
        raise TamperedError(f"{path} cannot be read as a node's store: {error}") from error


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of it, durably, or none of it."""
    connection.execute("begin immediate")
    try:
        yield
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:  # a full disk may have ended it already
            connection.execute("rollback")
        raise
