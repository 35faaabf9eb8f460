"""The node's store: what it opens, and what it leaves alone."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fleet.errors import TamperedError, UsageError
from node.store import open_store


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
