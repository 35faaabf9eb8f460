"""One client's connection: requests one after the other, each read whole within its time, until either side ends it."""

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Protocol, Self

from node.http_message import Head, HttpError, Request, Response, parse_head

_READ_BYTES = 1 << 16
_VALUE_BYTES = 26  # -2.2250738585072014e-308 is the longest that is written for a number, then ", "
_AROUND_BYTES = 64 << 10  # names, parameters, brackets
_DRAIN_S = 2.0  # how long what nobody will read is still taken in, so that the refusal arrives


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may take from the others. Times in seconds."""

    head_bytes: int = 16 << 10
    body_bytes: int = 4 << 20
    connections: int = 64
    request_s: float = 10.0  # from the first byte of a request to its last
    idle_s: float = 75.0  # between two requests of a connection, and for taking in an answer

    @classmethod
    def for_reading(cls, values: int) -> Self:
        """A reading of so many values fits, in JSON too."""
        return cls(body_bytes=max(cls().body_bytes, values * _VALUE_BYTES + _AROUND_BYTES))


class Application(Protocol):
    """What answers: whole requests in, whole responses out, from many threads. Neither method raises."""

    def answer(self, request: Request) -> Response: ...

    def refuse(self, error: HttpError) -> Response: ...


class Connection:
    """Runs in a thread of its own from ``start`` on, and closes its socket at the end."""

    def __init__(self, client: socket.socket, application: Application, limits: Limits) -> None:
        self._socket = client
        self._application = application
        self._limits = limits
        self._rest = b""  # received and not yet used: the next request, or its beginning
        self._thread: threading.Thread | None = None
        self.idle_since: float | None = monotonic()
        client.settimeout(limits.idle_s)
        if client.family != socket.AF_UNIX:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self, done: "Callable[[Connection], None]") -> None:
        """Serve from now on; ``done`` is called when the connection is over.

        Raises:
            RuntimeError: The system has no thread left.
        """
        self._thread = threading.Thread(target=self._serve, args=(done,), name="local-api-client", daemon=True)
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of what runs."""
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def hang_up(self) -> None:
        """Read no further; a request that was received whole is still answered."""
        try:
            self._socket.shutdown(socket.SHUT_RD)
        except OSError:
            return  # it has ended by itself

    def turn_away(self) -> None:
        """Say that there is no room, and end."""
        busy = HttpError(503, "too many connections, try again", ("Retry-After", "1"))
        try:
            self._socket.settimeout(0)
            self._socket.sendall(self._application.refuse(busy).to_bytes(close=True))
        except OSError:
            pass  # it did not want to hear
        finally:
            self._socket.close()

    def _serve(self, done: "Callable[[Connection], None]") -> None:
        try:
            while self._exchange():
                self.idle_since = monotonic()
        except OSError:
            pass  # the client has gone, or said nothing for too long
        finally:
            self._socket.close()
            done(self)

    def _exchange(self) -> bool:
        """One request and its answer; whether another may follow."""
        try:
            head, body = self._read()
        except HttpError as error:
            self._socket.sendall(self._application.refuse(error).to_bytes(close=True))
            self._drain()
            return False
        if head is None:
            return False
        response = self._application.answer(Request(head.method, head.path, head.headers, body))
        self._socket.sendall(response.to_bytes(close=not head.persistent, bodiless=head.method == "HEAD"))
        return head.persistent

    def _read(self) -> tuple[Head | None, bytes]:
        if not self._rest:
            self._rest = self._socket.recv(_READ_BYTES)
            if not self._rest:
                return None, b""
        self.idle_since = None
        deadline = monotonic() + self._limits.request_s
        try:
            head = self._head(deadline)
            return head, self._body(head, deadline)
        finally:
            self._socket.settimeout(self._limits.idle_s)

    def _head(self, deadline: float) -> Head:
        limit = self._limits.head_bytes
        while (end := self._rest.find(b"\r\n\r\n")) < 0 and len(self._rest) <= limit:
            self._rest += self._receive(deadline)
        if not 0 <= end <= limit:
            raise HttpError(431, f"the head of the request is longer than {limit} bytes")
        raw, self._rest = self._rest[:end], self._rest[end + 4 :]
        return parse_head(raw)

    def _body(self, head: Head, deadline: float) -> bytes:
        length = head.length
        if length > self._limits.body_bytes:
            raise HttpError(413, f"Content-Length: {length}, at most {self._limits.body_bytes}: send fewer readings")
        if length > len(self._rest) and head.headers.get("expect", "").lower() == "100-continue":
            self._socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        data = bytearray(self._rest)
        while len(data) < length:
            data += self._receive(deadline)
        self._rest = bytes(data[length:])
        return bytes(data[:length])

    def _receive(self, deadline: float) -> bytes:
        left_s = deadline - monotonic()
        try:
            self._socket.settimeout(max(left_s, 0.001))
            data = self._socket.recv(_READ_BYTES)
        except TimeoutError as error:
            raise HttpError(408, f"the request did not arrive within {self._limits.request_s:g} s") from error
        if not data:
            raise ConnectionAbortedError("gone in the middle of a request")
        return data

    def _drain(self) -> None:
        """Take in what is still on its way: closing over unread bytes would destroy the refusal."""
        self._socket.shutdown(socket.SHUT_WR)
        deadline = monotonic() + _DRAIN_S
        while (left_s := deadline - monotonic()) > 0:
            self._socket.settimeout(left_s)
            if not self._socket.recv(_READ_BYTES):
                return
