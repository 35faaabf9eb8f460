"""A uvicorn server in a thread: bound before it is started, so that port 0 has a number."""

import asyncio
import contextlib
import resource
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fleet.errors import UsageError

MAX_HEADERS = 16 * 1024
MAX_CONNECTIONS = 2000
FILES_EACH = 2  # a connection, and the file that is read for it
OTHER_FILES = 128  # databases, mostly
HEADERS_S = 15.0
GRACE_S = 3.0
KEEP_ALIVE_S = 75
_NEVER = object()


@dataclass(frozen=True, slots=True)
class Certificate:
    """The files of a server's certificate chain and its private key, in PEM."""

    chain: Path
    key: Path

    def check(self) -> None:
        """Refuse files that no server can use.

        Raises:
            UsageError: Says which.
        """
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.chain, self.key)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"certificate {self.chain} and key {self.key} cannot be used: {error}") from error


def room(files: int) -> int:
    """How many connections may be open at one time where a process may have so many files open."""
    return max(1, min(MAX_CONNECTIONS, (files - OTHER_FILES) // FILES_EACH))


def raised() -> int:
    """Let this process open as many files as we may need, if that is for us to say; how many it may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = MAX_CONNECTIONS * FILES_EACH + OTHER_FILES
    files = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return files


@dataclass(slots=True)
class Room:
    """Who is connected: at most ``most``, and of one address a quarter: many devices may be behind it, never all.

    Loopback has no share: what comes from there is ours, or a proxy's.
    """

    most: int
    _inside: Counter[str] = field(default_factory=Counter)

    def enter(self, address: str) -> bool:
        """Count one in, unless it is full."""
        shared = address == "::1" or address.startswith("127.")
        if self._inside.total() >= self.most or (not shared and self._inside[address] >= max(1, self.most // 4)):
            return False
        self._inside[address] += 1
        return True

    def leave(self, address: str) -> None:
        """Count one out."""
        self._inside[address] -= 1
        if not self._inside[address]:
            del self._inside[address]


class _Counted(socket.socket):
    """A connection that says when it is closed."""

    left: Callable[[], None] | None = None

    def close(self) -> None:
        """Close it, and give its place away."""
        super().close()
        left, self.left = self.left, None
        if left:
            left()


class _Bounded(socket.socket):
    """A listening socket that hangs up on whom there is no room for: before TLS, in which one may dawdle unseen."""

    room: Room

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection that there is room for.

        Raises:
            ConnectionAbortedError: There was none for this one; asyncio goes on.
        """
        connection, address = super().accept()
        if not self.room.enter(address[0]):
            connection.close()
            raise ConnectionAbortedError
        counted = _Counted(self.family, self.type, self.proto, fileno=connection.detach())
        counted.left = partial(self.room.leave, address[0])
        return counted, address


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that hangs up on those who dribble headers: uvicorn itself would wait for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to look, now and then, whether a request is whole."""
        super().connection_made(transport)
        self._served: object = None
        self._look = self.loop.call_later(HEADERS_S, self._hang_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Look no more."""
        self._look.cancel()
        super().connection_lost(exc)

    def _hang_up(self) -> None:
        """Look again: at the same point in half a request as before, the connection ends. One at rest may rest."""
        half = self.cycle is None or (self.cycle.response_complete and bool(self.conn.trailing_data[0]))
        if half and self.cycle is self._served:
            self.transport.close()
            return
        self._served = self.cycle if half else _NEVER
        self._look = self.loop.call_later(HEADERS_S, self._hang_up)


class Listener:
    """An address that is ours, and whatever application is served on it."""

    def __init__(self, host: str, port: int, certificate: Certificate | None = None, *, most: int = 64) -> None:
        """Bind the address; port 0 becomes a free one. ``most`` is how many connections may be open at one time.

        Raises:
            UsageError: It cannot be bound, or the certificate cannot be used.
        """
        if certificate:
            certificate.check()
        self._certificate = certificate
        self._socket = _bound(host, port, Room(most))
        self.host, self.port = host, self._socket.getsockname()[1]
        self.scheme = "https" if certificate else "http"

    @contextlib.contextmanager
    def serving(self, app: Any) -> Iterator[None]:
        """Answer requests by an ASGI application; on leaving, those under way have a moment to end."""
        server = uvicorn.Server(self._config(app))
        thread = threading.Thread(target=self._run, args=[server], name=f"listener-{self.port}", daemon=True)
        thread.start()
        while not server.started:
            if not thread.is_alive():
                raise UsageError(f"{self.host}:{self.port} cannot be served")
            time.sleep(0.01)
        try:
            yield
        finally:
            server.should_exit = True
            thread.join(2 * GRACE_S)
            self.close()

    def close(self) -> None:
        """Give the address back."""
        self._socket.close()

    def _config(self, app: Any) -> uvicorn.Config:
        return uvicorn.Config(
            app,
            loop="asyncio",
            http=PatientProtocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(GRACE_S),
            h11_max_incomplete_event_size=MAX_HEADERS,
            ssl_certfile=self._certificate.chain if self._certificate else None,
            ssl_keyfile=self._certificate.key if self._certificate else None,
        )

    def _run(self, server: uvicorn.Server) -> None:
        with contextlib.suppress(SystemExit):  # how uvicorn says that it could not start
            server.run(sockets=[self._socket])


def _bound(host: str, port: int, space: Room) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = _Bounded(family)
    bound.room = space
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise UsageError(f"{host}:{port} cannot be listened on: {error}") from error
    return bound
