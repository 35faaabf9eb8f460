"""Brings python-tuf what it asks for from the coordinator's repository; nothing brought is trusted."""

from collections.abc import Iterator
from dataclasses import dataclass

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface

from fleet.errors import AllowanceError, BusyError, LinkError
from node.coordinator_client import CoordinatorClient
from node.transport import Head, Reply, checked

REPOSITORY = "/api/v1/repository/"
_KEPT_BYTES = 64_000
_KEPT = 16
_RESUMES = 5


@dataclass(frozen=True, slots=True)
class _Kept:
    tag: str
    body: bytes


class HttpFetcher(FetcherInterface):
    """The repository of an enrolled node's coordinator.

    Small files that have an ETag are kept, and only asked for again if they changed. A download that is cut goes on
    where it was, as long as the file is still the same one.

    Args:
        client: Says who asks.
        url: What the installer calls the repository; only paths below it are fetched.
    """

    def __init__(self, client: CoordinatorClient, *, url: str = "file:///") -> None:
        self._client = client
        self._url = url
        self._kept: dict[str, _Kept] = {}

    def _fetch(self, url: str) -> Iterator[bytes]:
        if not url.startswith(self._url):
            raise DownloadHTTPError(f"{url} is not in the repository", 403)
        return self._pieces(REPOSITORY + url.removeprefix(self._url))

    def _pieces(self, path: str) -> Iterator[bytes]:
        """The file from its beginning, over as many as ``_RESUMES`` connections."""
        progress = _Progress(self._kept.get(path))
        for attempt in range(_RESUMES + 1):
            before = progress.got
            try:
                yield from self._attempt(path, progress)
            except (AllowanceError, BusyError):
                raise
            except LinkError:
                if attempt == _RESUMES or progress.got == before or not progress.tag:
                    raise
            else:
                return

    def _attempt(self, path: str, progress: "_Progress") -> Iterator[bytes]:
        for renewed in (False, True):
            headers = {**self._client.bearer(), **progress.headers()}
            with self._client.transport.stream("GET", path, headers=headers) as head:
                if head.status == 401 and not renewed:
                    self._client.forget_token()
                    continue
                yield from self._read(path, head, progress)
                return

    def _read(self, path: str, head: Head, progress: "_Progress") -> Iterator[bytes]:
        if head.status == 304 and progress.kept and not progress.got:
            yield progress.kept.body
            return
        if head.status in (403, 404):
            raise DownloadHTTPError(f"{path}: the coordinator answered {head.status}", head.status)
        checked(Reply(head.status, head.headers, b""), path)
        progress.begin(path, head)
        small = b""
        for piece in head.pieces:
            progress.got += len(piece)
            if progress.got <= _KEPT_BYTES:
                small += piece
            yield piece
        if progress.tag and len(small) == progress.got:
            self._keep(path, _Kept(progress.tag, small))

    def _keep(self, path: str, kept: _Kept) -> None:
        self._kept.pop(path, None)
        self._kept[path] = kept
        if len(self._kept) > _KEPT:
            del self._kept[next(iter(self._kept))]


class _Progress:
    """How much of one version of a file is here."""

    def __init__(self, kept: _Kept | None) -> None:
        self.kept = kept
        self.got = 0
        self.tag = ""

    def headers(self) -> dict[str, str]:
        """What to ask for: the rest of the same version, or the file unless it is the one that is kept."""
        if self.got:
            return {"Range": f"bytes={self.got}-", "If-Range": self.tag}
        return {"If-None-Match": self.kept.tag} if self.kept else {}

    def begin(self, path: str, head: Head) -> None:
        """A reply begins.

        Raises:
            LinkError: It does not go on where the last one was cut.
        """
        tag = head.headers.get("etag", "")
        if not self.got:
            if head.status != 200:
                raise LinkError(f"{path}: asked for the file, got {head.status}")
            self.tag = tag
            return
        begins = head.headers.get("content-range", "").startswith(f"bytes {self.got}-")
        if head.status != 206 or not begins or tag not in ("", self.tag):
            self.tag = ""  # what is here belongs to another version
            raise LinkError(f"{path} changed while it was fetched")
