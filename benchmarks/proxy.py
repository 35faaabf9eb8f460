"""A TCP proxy on loopback that delays and misbehaves on purpose: a bad link, for tests and benchmarks."""

import random
import select
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

_PIECE = 16_384
_DRIP = 16


@dataclass(slots=True)
class Fault:
    """What the link does; may be changed while it is in use, and holds for connections from then on.

    Attributes:
        round_trip_s: A piece takes half of this each way, and a new connection all of it.
        refuse: New connections are closed at once.
        half_open: Bytes are taken and never delivered, in either direction.
        truncate: Connections are closed, in order, after this many bytes of answers.
        reset: What ``truncate`` does is done by a reset instead of an orderly end.
        drip_s: Answers arrive ``_DRIP`` bytes at a time, this far apart.
        duplicate: What a client sends is sent again on a second connection, whose answers go nowhere.
        loss: Share of the connections that are cut at a random byte.
    """

    round_trip_s: float = 0.0
    refuse: bool = False
    half_open: bool = False
    truncate: int | None = None
    reset: bool = False
    drip_s: float = 0.0
    duplicate: bool = False
    loss: float = 0.0


@dataclass(slots=True)
class Counts:
    """What went over the link."""

    connections: int = 0
    up: int = 0
    down: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, *, connections: int = 0, up: int = 0, down: int = 0) -> None:
        """Count."""
        with self.lock:
            self.connections += connections
            self.up += up
            self.down += down


class Proxy:
    """Listens on a free port of 127.0.0.1 and forwards to ``target``, as well as ``fault`` lets it."""

    def __init__(self, target: tuple[str, int], fault: Fault | None = None, *, seed: int = 0) -> None:
        self.fault = fault or Fault()
        self.counts = Counts()
        self._target = target
        self._random = random.Random(seed)  # noqa: S311 - a bad link is no secret
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Cut every connection that is open."""
        with self._lock:
            for end in self._open:
                _end(end)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.counts.add(connections=1)
            if self.fault.refuse:
                _end(client)
                client.close()
            else:
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        fault = self.fault
        time.sleep(fault.round_trip_s)
        try:
            server = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        twin = socket.create_connection(self._target) if fault.duplicate else None
        ends = [end for end in (client, server, twin) if end]
        for end in ends:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open.update(ends)
        limit = fault.truncate
        if fault.loss and self._random.random() < fault.loss:
            limit = self._random.randrange(2_000)
        gone = threading.Event()
        down = threading.Thread(target=self._down, args=(server, client, fault, limit, gone), daemon=True)
        down.start()
        if twin:
            threading.Thread(target=_drain, args=(twin,), daemon=True).start()
        self._up(client, [server, *([twin] if twin else [])], fault, gone)
        down.join()
        with self._lock:
            self._open.difference_update(ends)
        for end in ends:
            end.close()

    def _up(self, client: socket.socket, servers: list[socket.socket], fault: Fault, gone: threading.Event) -> None:
        line = _Line(servers, fault.round_trip_s / 2)
        while piece := _received(client, gone):
            if not fault.half_open:
                self.counts.add(up=len(piece))
                line.put(piece)
        line.finish()

    def _down(
        self, server: socket.socket, client: socket.socket, fault: Fault, limit: int | None, gone: threading.Event
    ) -> None:
        line = _Line([client], fault.round_trip_s / 2, drip_s=fault.drip_s)
        while piece := _received(server):
            if fault.half_open:
                continue
            cut = limit is not None and len(piece) >= limit
            piece = piece[:limit] if limit is not None else piece
            limit = limit - len(piece) if limit is not None else None
            self.counts.add(down=len(piece))
            line.put(piece)
            if cut:
                break
        line.finish(reset=fault.reset and limit == 0)
        gone.set()
        _end(server)


class _Line:
    """Delivers pieces in order, each ``delay_s`` after it was put, without holding up the ones behind it."""

    def __init__(self, ends: list[socket.socket], delay_s: float, *, drip_s: float = 0.0) -> None:
        self._ends = ends
        self._delay_s = delay_s
        self._drip_s = drip_s
        self._waiting: list[tuple[float, bytes]] = []
        self._ready = threading.Condition()
        self._thread = threading.Thread(target=self._deliver, daemon=True)
        self._thread.start()

    def put(self, piece: bytes) -> None:
        with self._ready:
            self._waiting.append((time.monotonic() + self._delay_s, piece))
            self._ready.notify()

    def finish(self, *, reset: bool = False) -> None:
        """Deliver what is left, then end."""
        self.put(b"")
        self._thread.join()
        for end in self._ends:
            if reset:  # the last thread that uses it closes it, and that sends the reset
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            else:
                _end(end)

    def _deliver(self) -> None:
        while True:
            with self._ready:
                while not self._waiting:
                    self._ready.wait()
                due, piece = self._waiting.pop(0)
            time.sleep(max(0.0, due - time.monotonic()))
            if not piece or not self._send(piece):
                return

    def _send(self, piece: bytes) -> bool:
        parts = [piece[i : i + _DRIP] for i in range(0, len(piece), _DRIP)] if self._drip_s else [piece]
        for part in parts:
            time.sleep(self._drip_s)
            for end in self._ends:
                try:
                    end.sendall(part)
                except OSError:
                    return False
        return True


def _received(end: socket.socket, gone: threading.Event | None = None) -> bytes:
    try:
        while gone is not None and not select.select([end], [], [], 0.02)[0]:
            if gone.is_set():
                return b""
        return end.recv(_PIECE)
    except (OSError, ValueError):
        return b""


def _drain(end: socket.socket) -> None:
    while _received(end):
        pass


def _end(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
