"""The shelf as a device reaches it: whole, not at all, or as a mirror that gets nothing new."""

from pathlib import Path

import pytest

from simulations.shelf import CountingFetcher, Reach

TIMESTAMP = "file:///metadata/timestamp.json"


class Shelf:
    def __init__(self, folder: Path) -> None:
        self.reach = Reach.ALL
        self._file = folder / "metadata" / "timestamp.json"
        self._file.parent.mkdir()
        self.sign(b"first")
        self.fetcher = CountingFetcher(folder, lambda: self.reach)

    def sign(self, timestamp: bytes) -> None:
        self._file.write_bytes(timestamp)

    def read(self) -> bytes:
        return self.fetcher.download_bytes(TIMESTAMP, 100)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_a_frozen_shelf_keeps_what_was_read_last(shelf: Shelf) -> None:
    assert shelf.read() == b"first"
    shelf.reach = Reach.FROZEN
    shelf.sign(b"second")
    assert shelf.read() == b"first"
    shelf.reach = Reach.ALL
    assert shelf.read() == b"second"


def test_a_mirror_is_copied_while_the_device_cannot_reach_it(shelf: Shelf) -> None:
    shelf.reach = Reach.NOTHING
    shelf.sign(b"second")
    with pytest.raises(ConnectionError, match="the link is down"):
        shelf.read()
    shelf.sign(b"third")
    shelf.reach = Reach.FROZEN
    assert shelf.read() == b"second"


def test_a_mirror_that_was_never_copied_is_empty(shelf: Shelf) -> None:
    shelf.reach = Reach.FROZEN
    with pytest.raises(ConnectionError, match="the mirror is empty"):
        shelf.read()
