"""An HTTP/1.1 server for programs on the same device: a thread a connection, bounded in number, size and time.

The standard library's server spends more time on a request's head than a small model on its answer.
"""

import socket
import threading
from contextlib import suppress
from pathlib import Path

from fleet.errors import UsageError
from node.address import Port, parse
from node.http_connection import Application, Connection, Limits

_BACKLOG = 64
_OUT_OF_FILES_S = 0.1


class HttpServer:
    """Serves one application at one address, from ``start`` to ``close``."""

    def __init__(self, where: str, application: Application, limits: Limits | None = None) -> None:
        """Take the address, spelled as in ``node.address.parse``.

        Raises:
            UsageError: It cannot be had; the message says why.
        """
        self._application = application
        self._limits = limits or Limits()
        self._place = parse(where)
        self._socket = _bound(self._place)
        self._connections: set[Connection] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._accept, name="local-api", daemon=True)

    @property
    def address(self) -> str:
        """Where it is found, with the port that the system chose if it was asked to."""
        if isinstance(self._place, Path):
            return f"unix:{self._place}"
        host, number = self._socket.getsockname()[:2]
        return str(Port(host, number))

    def start(self) -> None:
        """Answer from now on."""
        self._socket.listen(_BACKLOG)
        self._thread.start()

    def close(self) -> None:
        """Let go of the address; requests that were received whole are still answered."""
        self._closed.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._socket.close()
        if isinstance(self._place, Path):
            self._place.unlink(missing_ok=True)
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.hang_up()
        for connection in connections:
            connection.join(self._limits.request_s)

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._socket.accept()
            except OSError:
                self._closed.wait(_OUT_OF_FILES_S)  # those in use will be given back
                continue
            self._admit(Connection(client, self._application, self._limits))

    def _admit(self, connection: Connection) -> None:
        """Serve it if there is room; the connection that has been idle longest makes room."""
        if not self._has_room():
            connection.turn_away()
            return
        with self._lock:
            self._connections.add(connection)
        try:
            connection.start(self._forget)
        except RuntimeError:
            self._forget(connection)
            connection.turn_away()

    def _has_room(self) -> bool:
        with self._lock:
            if len(self._connections) < self._limits.connections:
                return True
            idle = [(since, one) for one in self._connections if (since := one.idle_since) is not None]
            if not idle:
                return False
            oldest = min(idle, key=lambda entry: entry[0])[1]
            self._connections.discard(oldest)
        oldest.hang_up()
        return True

    def _forget(self, connection: Connection) -> None:
        with self._lock:
            self._connections.discard(connection)


def _bound(place: Port | Path) -> socket.socket:
    try:
        return _bound_path(place) if isinstance(place, Path) else _bound_port(place)
    except OSError as error:
        raise UsageError(f"{place}: cannot listen there: {error.strerror or error}") from error


def _bound_port(place: Port) -> socket.socket:
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((place.host, place.number))
    except OSError:
        server.close()
        raise
    return server


def _bound_path(path: Path) -> socket.socket:
    """Its owner and group may connect. What a killed process left behind is replaced."""
    if path.is_socket():
        if _is_answered(path):
            raise UsageError(f"{path}: another process answers there")
        path.unlink()
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        server.bind(str(path))
        path.chmod(0o660)  # nobody can connect before it listens
    except OSError:
        server.close()
        raise
    return server


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True
