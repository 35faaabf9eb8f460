"""HTTP/1.1 heads as bytes (RFC 9112), read strictly: what can be read in two ways is refused."""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from fleet.errors import FleetError

_TOKEN = frozenset("!#$%&'*+-.^_`|~" + string.digits + string.ascii_letters)
_ONCE = frozenset(
    {"host", "content-length", "transfer-encoding", "content-encoding", "inference-header-content-length"}
)
_VERSIONS = {"HTTP/1.1": True, "HTTP/1.0": False}
_REASONS = {status.value: status.phrase for status in HTTPStatus}


class HttpError(FleetError):
    """A request that gets no other answer than this status and this line."""

    def __init__(self, status: int, message: str, *headers: tuple[str, str]) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Head:
    """A request without its body; header names in lower case, the path without its query."""

    method: str
    path: str
    headers: Mapping[str, str]
    persistent: bool  # whether the connection stays open after the answer

    @property
    def length(self) -> int:
        """How many bytes of body follow.

        Raises:
            HttpError: It cannot be told.
        """
        if "transfer-encoding" in self.headers:
            raise HttpError(411, "Transfer-Encoding: not offered, send a Content-Length")
        return number(self.headers, "content-length") or 0


@dataclass(frozen=True, slots=True)
class Request:
    """One request, whole."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Response:
    """What goes back; ``headers`` stand beside length, type and connection."""

    status: int
    body: bytes
    kind: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()

    def to_bytes(self, *, close: bool, bodiless: bool = False) -> bytes:
        """The whole message; ``bodiless`` for the answer to HEAD."""
        lines = [
            f"HTTP/1.1 {self.status} {_REASONS[self.status]}",
            f"Content-Length: {len(self.body)}",
            f"Content-Type: {self.kind}",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        if close:
            lines.append("Connection: close")
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        return head if bodiless else head + self.body


def parse_head(data: bytes) -> Head:
    """A request's head, without the empty line that ends it.

    Raises:
        HttpError: It is malformed, or a version of HTTP that is not spoken here.
    """
    first, *lines = data.decode("latin-1").split("\r\n")
    parts = first.split(" ")
    if len(parts) != 3 or not parts[0] or not _TOKEN.issuperset(parts[0]) or not parts[1].startswith("/"):
        raise HttpError(400, "the request line must be: METHOD /path HTTP/1.1")
    method, target, version = parts
    if version not in _VERSIONS:
        raise HttpError(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
    headers = _headers(lines)
    if "host" not in headers and _VERSIONS[version]:
        raise HttpError(400, "Host: missing")
    wish = headers.get("connection", "").lower()
    persistent = "close" not in wish if _VERSIONS[version] else "keep-alive" in wish
    return Head(method, target.partition("?")[0], headers, persistent)


def number(headers: Mapping[str, str], name: str) -> int | None:
    """A header that counts bytes; None if it is not there.

    Raises:
        HttpError: It is no such number.
    """
    text = headers.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise HttpError(400, f"{name}: must be a number of bytes")
    return int(text)


def _headers(lines: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or not _TOKEN.issuperset(name):
            raise HttpError(400, "a header line must be: Name: value")
        name, value = name.lower(), value.strip(" \t")
        if "\n" in value or "\r" in value or "\0" in value:
            raise HttpError(400, f"{name}: holds a control character")
        if name in headers and name in _ONCE and headers[name] != value:
            raise HttpError(400, f"{name}: given twice")
        headers[name] = value
    return headers
