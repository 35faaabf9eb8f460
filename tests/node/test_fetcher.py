"""What python-tuf asks for, brought over bad links."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import pytest
from tuf.api.exceptions import DownloadHTTPError, DownloadLengthMismatchError

from benchmarks.proxy import Fault, Proxy
from fleet.errors import BusyError, LinkError
from node.fetcher import HttpFetcher
from node.transport import Transport
from tests.http_server import Answer, Request, http_server

BIG = bytes(range(256)) * 2000
URL = "file:///targets/releases/1/a"


@dataclass
class Shelf:
    """A coordinator's repository route."""

    files: dict[str, bytes] = field(default_factory=lambda: {"targets/releases/1/a": BIG, "metadata/t.json": b"{}"})
    asked: list[Request] = field(default_factory=list)
    token: str = "good"
    busy: bool = False

    def __call__(self, request: Request) -> Answer:
        self.asked.append(request)
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return 401, {}, b""
        if self.busy:
            return 503, {"Retry-After": "9"}, b""
        data = self.files.get(request.path.removeprefix("/api/v1/repository/"))
        if data is None:
            return 404, {}, b""
        tag = f'"{sha256(data).hexdigest()}"'
        if request.headers.get("if-none-match") == tag:
            return 304, {"ETag": tag}, b""
        begin = request.headers.get("range", "")
        if begin and request.headers.get("if-range") == tag:
            start = int(begin.removeprefix("bytes=").removesuffix("-"))
            return 206, {"ETag": tag, "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}, data[start:]
        return 200, {"ETag": tag}, data


class Client:
    """Says who asks."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.tokens = ["good", "good", "stale"]

    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[-1]}"}

    def forget_token(self) -> None:
        self.tokens.pop()


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def link(shelf: Shelf) -> Iterator[Proxy]:
    with http_server(shelf) as port, Proxy(("127.0.0.1", port)) as proxy:
        yield proxy


@pytest.fixture
def fetcher(link: Proxy) -> Iterator[HttpFetcher]:
    transport = Transport(f"http://127.0.0.1:{link.port}", silence_s=2)
    client: Any = Client(transport)
    yield HttpFetcher(client)
    transport.close()


def test_a_file_is_brought_with_a_token_that_is_renewed(fetcher: HttpFetcher, shelf: Shelf) -> None:
    assert fetcher.download_bytes(URL, len(BIG)) == BIG
    assert len(shelf.asked) == 2


def test_a_token_that_is_refused_again_is_no_endless_loop(fetcher: HttpFetcher, shelf: Shelf) -> None:
    shelf.token = "revoked"
    with pytest.raises(Exception, match="refused"):
        fetcher.download_bytes(URL, len(BIG))
    assert len(shelf.asked) <= 3


def test_a_cut_download_goes_on_where_it_was(fetcher: HttpFetcher, shelf: Shelf, link: Proxy) -> None:
    link.fault = Fault(truncate=150_000)
    assert fetcher.download_bytes(URL, len(BIG)) == BIG
    assert link.counts.down < len(BIG) + 10_000
    ranges = [request.headers["range"] for request in shelf.asked if "range" in request.headers]
    assert len(ranges) >= 3


def test_a_file_that_changes_between_two_pieces_is_not_stitched_together(
    fetcher: HttpFetcher, shelf: Shelf, link: Proxy
) -> None:
    link.fault = Fault(truncate=150_000)
    pieces = fetcher.fetch(URL)
    assert BIG.startswith(next(pieces))
    shelf.files["targets/releases/1/a"] = BIG[::-1]
    with pytest.raises(LinkError, match="changed"):
        list(pieces)


def test_a_link_that_never_works_is_given_up(fetcher: HttpFetcher, link: Proxy) -> None:
    link.fault = Fault(truncate=10)
    with pytest.raises(LinkError):
        fetcher.download_bytes(URL, len(BIG))
    assert link.counts.connections <= 3


def test_what_did_not_change_is_not_sent_again(fetcher: HttpFetcher, shelf: Shelf) -> None:
    url = "file:///metadata/t.json"
    assert [fetcher.download_bytes(url, 100) for _ in range(3)] == [b"{}"] * 3
    assert [request.headers.get("if-none-match") is not None for request in shelf.asked[1:]] == [False, True, True]
    shelf.files["metadata/t.json"] = b"{1}"
    assert fetcher.download_bytes(url, 100) == b"{1}"


def test_what_is_missing_is_said_in_tufs_words(fetcher: HttpFetcher) -> None:
    with pytest.raises(DownloadHTTPError) as raised:
        fetcher.download_bytes("file:///metadata/2.root.json", 100)
    assert raised.value.status_code == 404


def test_more_than_was_asked_for_is_not_read(fetcher: HttpFetcher) -> None:
    with pytest.raises(DownloadLengthMismatchError):
        fetcher.download_bytes(URL, 1000)


def test_a_busy_coordinator_says_when_to_come_back(fetcher: HttpFetcher, shelf: Shelf) -> None:
    shelf.busy = True
    with pytest.raises(BusyError) as raised:
        fetcher.download_bytes(URL, len(BIG))
    assert raised.value.retry_after_s == 9


def test_only_the_repository_is_fetched(fetcher: HttpFetcher, shelf: Shelf) -> None:
    with pytest.raises(DownloadHTTPError):
        fetcher.download_bytes("http://elsewhere/a", 100)
    assert shelf.asked == []
