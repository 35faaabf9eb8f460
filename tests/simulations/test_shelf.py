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

    def publish(self, name: str, size: int) -> None:
        path = self._file.parent.parent / "targets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))

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


def test_what_a_base_costs_is_counted_with_its_metadata_and_without_looks_that_bring_none(shelf: Shelf) -> None:
    for name, size in {"bases/00000001/x.manifest.json": 3, "bases/00000001/x.weights.bin": 40}.items():
        shelf.publish(name, size)
    shelf.publish("releases/00000001/x.weights.bin", 500)
    shelf.read()
    assert shelf.fetcher.taken() == (0, 0), "nothing but a look"
    shelf.read()
    for name in ("bases/00000001/x.manifest.json", "bases/00000001/x.weights.bin", "releases/00000001/x.weights.bin"):
        shelf.fetcher.download_bytes(f"file:///targets/{name}", 1000)
    assert shelf.fetcher.taken() == (1, len(b"first") + 3 + 40)
    assert shelf.fetcher.taken() == (0, 0)
