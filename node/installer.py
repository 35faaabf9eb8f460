"""Finds out what the coordinator signed, and fetches it: python-tuf's client, with its holes closed."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    RepositoryError,
)
from tuf.api.metadata import Root
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from urllib3.exceptions import HTTPError

from fleet.errors import DowngradeError, ExpiredError, LinkError, SignatureError
from node.floors import CLOCK, Floors

MAX_TARGET_BYTES = 256 << 20  # a stolen releases key must not be able to fill a device's memory
_LIMITS = UpdaterConfig(
    max_delegations=8,
    root_max_length=64_000,
    timestamp_max_length=4_000,
    snapshot_max_length=16_000,
    targets_max_length=2_000_000,
)
_PROBES = ("releases/-/-", "rollout/-")  # asking for these loads the delegated roles; nothing has such a name
_KEPT_BYTES = 64_000  # larger contents go to slots; for one process that polls often, the rollout is fetched once
_KEPT_FILES = 16
_CHUNK_BYTES = 65_536

Fetcher = FetcherInterface


@dataclass(frozen=True, slots=True)
class _View:
    """Metadata that was verified together: ``updater`` will look nothing up on the network any more."""

    updater: Updater
    expires: datetime


class Installer:
    """Verified contents of the coordinator's repository, and never older than what this node saw before.

    What this adds to python-tuf (facts: its cache is not flushed to the disk, and it believes the clock): floors
    under versions and time that outlive the cache; one set of errors; targets handed over as verified bytes, never
    left half written under their name. One process, and one thread, uses a folder at a time: nothing here locks it.

    Args:
        folder: A cache of metadata; losing it loses nothing but bytes to download.
        root: The root metadata that the node was provisioned with.
        fetcher: Brings bytes by URL; nothing it brings is trusted.
        floors: What was seen before.
        clock: The time now, in UTC; it may be wrong.
        url: Where the repository's ``metadata/`` and ``targets/`` are.
    """

    def __init__(
        self,
        folder: Path,
        root: bytes,
        fetcher: Fetcher,
        floors: Floors,
        *,
        clock: Callable[[], datetime],
        url: str = "file:///",
    ) -> None:
        self._folder = folder
        self._root = root
        self._fetcher = fetcher
        self._floors = floors
        self._clock = clock
        self._url = url
        self._view: _View | None = None
        self._contents: dict[str, bytes] = {}

    def refresh(self) -> None:
        """Verify the newest metadata, all roles of it, and trust it from now on (TUF §5.3-5.6).

        Raises:
            LinkError: It could not be brought here.
            SignatureError: It is not what was signed, or larger than anything we sign.
            ExpiredError: It is past its date: somebody withholds newer metadata, or the coordinator is down.
            DowngradeError: It is older than what was seen before.

        After any of these, what was trusted before still is, until its own date.
        """
        floors = self._floors.read()
        now = self._now(floors)
        with _our_errors("metadata"):
            updater = Updater(
                str(self._folder), f"{self._url}metadata/", fetcher=self._fetcher, config=_LIMITS, bootstrap=self._root
            )
            trusted = _trusted(updater)
            trusted.reference_time = now
            updater.refresh()
            for probe in _PROBES:
                updater.get_targetinfo(probe)
        seen = _versions(trusted)
        for name, version in seen.items():
            if version < floors.get(name, 0):
                raise DowngradeError(f"{name.split()[0]}: have seen v{floors[name]}, got v{version}")
        # It verified at this time, so the clock's floor stays below the date of metadata that somebody signed.
        self._floors.raise_to({**seen, CLOCK: int(now.timestamp())})
        self._view = _View(updater, min(signed.expires for signed in trusted))

    def fetch(self, path: str) -> bytes | None:
        """The signed bytes of ``path`` in the metadata that is trusted; None if it is not signed.

        Raises:
            LinkError: They could not be brought here, or nothing was refreshed yet.
            SignatureError: They are not what was signed.
            ExpiredError: The trusted metadata is past its date: refresh first.
        """
        updater = self._fresh_updater(path)
        with _our_errors(path):
            file = updater.get_targetinfo(path)
            if file is None:
                return None
            place = file.get_prefixed_paths()[0]
            if place in self._contents:
                return self._contents[place]
            if file.length > MAX_TARGET_BYTES:
                raise SignatureError(f"{path} is {file.length} bytes, at most {MAX_TARGET_BYTES} are read")
            data = self._fetcher.download_bytes(f"{self._url}targets/{place}", file.length)
            file.verify_length_and_hashes(data)
        self._keep(place, data)
        return data

    def _fresh_updater(self, path: str) -> Updater:
        if self._view is None:
            raise LinkError(f"{path}: no metadata was verified yet")
        if self._view.expires <= self._now(self._floors.read()):
            raise ExpiredError(f"{path}: the metadata that lists it expired at {self._view.expires:%Y-%m-%d %H:%M}")
        return self._view.updater

    def _now(self, floors: dict[str, int]) -> datetime:
        """Never before what was seen: a clock that starts in 1970 would find expired metadata fresh."""
        return max(self._clock(), datetime.fromtimestamp(floors.get(CLOCK, 0), UTC))

    def _keep(self, place: str, data: bytes) -> None:
        if len(data) <= _KEPT_BYTES:
            self._contents[place] = data
        if len(self._contents) > _KEPT_FILES:
            del self._contents[next(iter(self._contents))]


class FolderFetcher(Fetcher):
    """A repository in a local folder: a simulation's, or a USB stick's, which may be a hostile one."""

    def __init__(self, folder: Path) -> None:
        self._folder = os.path.realpath(folder)

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = os.path.realpath(os.path.join(self._folder, unquote(urlsplit(url).path).lstrip("/")))
        if os.path.commonpath((path, self._folder)) != self._folder:  # by `..` or by a link on the stick
            raise DownloadHTTPError(f"{url} is outside of the folder", 403)
        if not os.path.isfile(path):  # nor a pipe, which would hold us for ever
            raise DownloadHTTPError(f"{url} is not in the folder", 404)
        return _chunks(path)


def _chunks(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _trusted(updater: Updater) -> TrustedMetadataSet:
    """The verified metadata and the time it is judged at: python-tuf has no public name for either."""
    return updater._trusted_set


def _versions(trusted: TrustedMetadataSet) -> dict[str, int]:
    """Versions by role and era, an era being the keys of timestamp and snapshot.

    When either key is replaced, their versions may start again (§5.3.11): otherwise a thief who had signed
    version 2**31 would have stopped the fleet for ever.
    """
    root, timestamp, snapshot = trusted.root, trusted.timestamp, trusted.snapshot
    era = _key_set(root)
    versions = {"timestamp": timestamp.version, "snapshot": snapshot.version}
    versions |= {name.removesuffix(".json"): meta.version for name, meta in snapshot.meta.items()}
    return {"root": root.version} | {f"{role} {era}": version for role, version in versions.items()}


def _key_set(root: Root) -> str:
    roles = (",".join(sorted(root.roles[role].keyids)) for role in ("timestamp", "snapshot"))
    return sha256("|".join(roles).encode()).hexdigest()[:16]


@contextmanager
def _our_errors(what: str) -> Iterator[None]:
    try:
        yield
    except ExpiredMetadataError as error:
        raise ExpiredError(f"{what}: {error}") from error
    except BadVersionNumberError as error:
        raise DowngradeError(f"{what}: {error}") from error
    except (RepositoryError, DownloadLengthMismatchError) as error:  # too long is an attack, not a bad network
        raise SignatureError(f"{what}: {error}") from error
    except (DownloadError, HTTPError, OSError) as error:
        raise LinkError(f"{what}: {error}") from error
