"""The node's store: what it opens, and what it leaves alone."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fleet.errors import StoreError, TamperedError, UsageError
from node import store as store_module
from node.store import open_store, undamaged
from tests.conftest import fill


def test_a_store_of_another_schema_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    open_store(path).close()
    with closing(sqlite3.connect(path)) as store:
        assert store.execute("pragma user_version").fetchone() == (1,)
        store.executescript("pragma user_version=2; drop table report; pragma wal_checkpoint(truncate)")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="has schema 2, this edgefleet reads 1"):
        open_store(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_store_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    path.write_bytes(b"x" * 9000)
    with pytest.raises(TamperedError, match="cannot be read"):
        open_store(path)
    assert path.read_bytes() == b"x" * 9000


def test_a_store_that_has_no_room_to_be_opened_was_not_tampered_with(small_disk: Path) -> None:
    path = small_disk / "node.db"
    open_store(path).close()
    room = fill(small_disk)
    with pytest.raises(StoreError, match="is there room on the disk"):
        open_store(path)
    room.unlink()
    open_store(path).close()


def test_a_store_that_another_process_keeps_busy_was_not_tampered_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "node.db"
    monkeypatch.setattr(store_module, "LOCK_TIMEOUT_S", 0.1)
    with closing(sqlite3.connect(path)) as other:
        other.execute("begin exclusive")
        with pytest.raises(StoreError, match="locked"):
            open_store(path)


def test_a_store_that_the_device_does_not_let_be_opened_was_not_tampered_with(tmp_path: Path) -> None:
    (tmp_path / "node.db").mkdir()
    with pytest.raises(StoreError, match="unable to open"):
        open_store(tmp_path / "node.db")


def test_a_store_that_is_opened_only_to_be_read_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    with closing(open_store(path)):
        before = path.stat().st_mtime_ns
        open_store(path).close()
        assert path.stat().st_mtime_ns == before


def test_a_store_that_proves_to_be_damaged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    with closing(open_store(path)) as store:
        store.execute("insert into identity values ('name', ?)", (b"x" * 9000,))
        store.execute("pragma wal_checkpoint(truncate)")
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
    with (
        pytest.raises(TamperedError, match=f"{path} cannot be read as a node's store"),
        undamaged(path),
        closing(open_store(path)) as store,
    ):
        store.execute("select * from identity").fetchall()


def test_other_troubles_of_a_store_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError), undamaged(tmp_path), closing(sqlite3.connect(":memory:")) as store:
        store.execute("select * from nothing")
