"""The way from a simulated device to the coordinator's shelf: bytes counted, and cut when the link is."""

from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path

from node.installer import FolderFetcher

_TIMESTAMP = "/metadata/timestamp.json"


class Reach(Enum):
    """What a device can read of the shelf."""

    ALL = "all"
    FROZEN = "frozen"
    NOTHING = "nothing"


class CountingFetcher(FolderFetcher):
    """Reads the shelf as far as it can be reached, and counts the bytes that a base costs.

    A frozen shelf is a mirror that gets nothing new: it has what there was when this device last looked, whether it saw
    it or not. All files but the timestamp have their version in their name, so the old timestamp is all that it takes.
    """

    def __init__(self, folder: Path, reach: Callable[[], Reach] = lambda: Reach.ALL) -> None:
        super().__init__(folder)
        self._reach = reach
        self._timestamp: list[bytes] | None = None
        self._bases = self._bytes = 0

    def taken(self) -> tuple[int, int]:
        """Bases pulled since this was last asked, and their bytes with those of the metadata read meanwhile.

        Where no base was pulled, metadata was read for the sake of releases: it does not count.
        """
        bases, size = self._bases, self._bytes
        self._bases = self._bytes = 0
        return bases, size if bases else 0

    def _fetch(self, url: str) -> Iterator[bytes]:
        counts = not any(f"/targets/{kind}/" in url for kind in ("releases", "templates", "rollout"))
        for chunk in self._read(url, self._reach()):
            self._bytes += len(chunk) * counts
            yield chunk
        self._bases += "/targets/bases/" in url and url.endswith(".weights.bin")

    def _read(self, url: str, reach: Reach) -> Iterator[bytes]:
        if reach is not Reach.FROZEN:
            self._timestamp = list(super()._fetch(_TIMESTAMP))
        if reach is Reach.NOTHING:
            raise ConnectionError("the link is down")
        if not url.endswith(_TIMESTAMP):
            return super()._fetch(url)
        if self._timestamp is None:
            raise ConnectionError("the mirror is empty")
        return iter(self._timestamp)
