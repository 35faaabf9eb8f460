"""Floors that only rise."""

import sqlite3
from pathlib import Path

import pytest

from node.floors import CLOCK, SqliteFloors
from node.store import open_store


@pytest.fixture
def connection(tmp_path: Path) -> sqlite3.Connection:
    return open_store(tmp_path / "node.sqlite")


def commits(connection: sqlite3.Connection) -> list[str]:
    seen: list[str] = []
    connection.set_trace_callback(lambda statement: seen.append(statement) if statement == "commit" else None)
    return seen


def test_floors_survive_a_restart(tmp_path: Path) -> None:
    SqliteFloors(open_store(tmp_path / "node.sqlite")).raise_to({"root": 2, CLOCK: 7_000})
    assert SqliteFloors(open_store(tmp_path / "node.sqlite")).read() == {"root": 2, CLOCK: 7_000}


def test_a_floor_never_falls(connection: sqlite3.Connection) -> None:
    floors = SqliteFloors(connection)
    floors.raise_to({"root": 5, "timestamp a": 9})
    floors.raise_to({"root": 4, "timestamp a": 10})
    assert floors.read() == {"root": 5, "timestamp a": 10}


def test_a_floor_never_falls_even_if_another_connection_raised_it_meanwhile(tmp_path: Path) -> None:
    ours, theirs = (SqliteFloors(open_store(tmp_path / "node.sqlite")) for _ in range(2))
    stale = ours.read()
    theirs.raise_to({"root": 9})
    ours.read = lambda: stale  # type: ignore[method-assign]
    ours.raise_to({"root": 3})
    assert theirs.read() == {"root": 9}


def test_floors_rise_together_or_not_at_all(connection: sqlite3.Connection) -> None:
    floors = SqliteFloors(connection)
    connection.execute("create trigger t before insert on floor when new.name = 'b' begin select raise(abort, ''); end")
    with pytest.raises(sqlite3.IntegrityError):
        floors.raise_to({"a": 1, "b": 1})
    assert floors.read() == {}


@pytest.mark.parametrize(
    ("seen", "written"),
    [
        pytest.param({"root": 1, CLOCK: 10_000}, False, id="nothing new"),
        pytest.param({"root": 1, CLOCK: 13_599}, False, id="the clock went on less than an hour"),
        pytest.param({"root": 1, CLOCK: 13_600}, True, id="the clock went on an hour"),
        pytest.param({"root": 2, CLOCK: 10_001}, True, id="a version rose"),
        pytest.param({"root": 1, CLOCK: 5}, False, id="the clock fell back"),
    ],
)
def test_the_disk_is_written_only_for_news(connection: sqlite3.Connection, seen: dict[str, int], written: bool) -> None:
    floors = SqliteFloors(connection)
    floors.raise_to({"root": 1, CLOCK: 10_000})
    seen_commits = commits(connection)
    floors.raise_to(seen)
    assert bool(seen_commits) == written


def test_a_version_that_no_database_can_hold_is_held_as_the_highest(connection: sqlite3.Connection) -> None:
    floors = SqliteFloors(connection)
    floors.raise_to({"timestamp a": 10**30})
    assert floors.read() == {"timestamp a": 2**63 - 1}
