"""What stands before everything on the public listener: two doors, all else is not there; bounded, patient, fair."""

import asyncio
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from coordinator.api.device import MAX_JSON
from coordinator.api.problems import problem
from coordinator.reply import Longest
from fleet.errors import RefusedError
from fleet.events import Record, ignore

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Mapping[bytes, bytes]

FLEET = re.compile(r"/v1/fleet/[a-z-]{1,40}")
PUSH = "/v1/fleet/push-messages"
DEVICE = re.compile(r"/api/v1/[A-Za-z0-9_./-]{1,300}")
CALL = 4096  # bytes of whatever else a node says to Flower
SMALL = 64 * 1024  # bytes of every body that anybody may send and that are always taken
HEADER = b"flwr-public-key"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request, one caller and all callers together may cost.

    Attributes:
        longest: Of a reply, which Flower brings as a table of contents and its parts.
        idle_s: How long a body may stand still.
        slowest: Bytes a second that a body must come in at, after the first ``idle_s`` seconds.
        held: Bytes of bodies, above the first ``SMALL`` of each, in memory at one time: of all callers.
        share: The same of one address.
        rate: Requests a second of one caller, in the long run.
        burst: Requests of one caller at once.
        callers: How many callers are remembered.
    """

    longest: Longest
    json: int = MAX_JSON
    idle_s: float = 10.0
    slowest: int = 16 * 1024
    held: int = 256 * 2**20
    share: int = 64 * 2**20
    rate: float = 50.0
    burst: int = 400
    callers: int = 20_000


class Gate:
    """An ASGI application: Flower's Fleet API and our device API behind one set of limits."""

    def __init__(
        self,
        fleet: App,
        device: App,
        knows: Callable[[Headers], bool],
        replies: Callable[[bytes], bool],
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        record: Record = ignore,
    ) -> None:
        """What must be known of requests to Flower.

        Args:
            knows: Whether one, by its headers, is of a node; it may take its time.
            replies: Whether the body of one to ``PUSH`` is of its sender's own replies; it must be quick.
        """
        self._fleet = fleet
        self._device = device
        self._knows = knows
        self._replies = replies
        self._limits = limits
        self._clock = clock
        self._held: Counter[str] = Counter()
        self._record = record
        self._buckets: OrderedDict[object, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer that there is nothing."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        place = _Place(self._held, _address(scope), self._limits)
        try:
            app, most = self._door(scope)
            self._count(scope)
            body = await self._body(scope, receive, most, place)
            if scope["path"] == PUSH and not self._replies(body):
                raise RefusedError("not-a-reply", "nodes send Flower their own replies, and nothing else")
            await app(scope, _replay(body, receive), self._watched(send, scope) if app is self._fleet else send)
        except RefusedError as refused:
            self._record("request-refused", code=refused.code, reason=str(refused), path=scope["path"])
            await refuse(send, refused)
        finally:
            place.leave()

    def _watched(self, send: Send, scope: Scope) -> Send:
        """Flower records nobody whom it turns away."""

        async def watched(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start" and message["status"] == 401:
                reason = "Flower knows no such key, or the clock is off"
                self._record("request-refused", code="unknown-node", reason=reason, path=scope["path"])
            await send(message)

        return watched

    def _door(self, scope: Scope) -> tuple[App, int]:
        path = scope["path"]
        if FLEET.fullmatch(path):
            return self._fleet, self._of_fleet(path)
        if DEVICE.fullmatch(path) and ".." not in path:
            return self._device, self._limits.json
        raise RefusedError("not-found", "there is nothing here")

    def _of_fleet(self, path: str) -> int:
        match path.rpartition("/")[2]:
            case "push-object":
                return self._limits.longest.part
            case "push-messages":
                return self._limits.longest.table
        return CALL

    def _count(self, scope: Scope) -> None:
        """One caller is one key behind one address: many nodes may share an address, none shares a key."""
        headers = dict(scope["headers"])
        address = _address(scope)
        shown = headers.get(HEADER) or headers.get(b"authorization") or b""
        now, limits = self._clock(), self._limits
        for caller, share in (((address, hash(shown)), 1), (address, 20)):  # keys cost nothing to make up
            left, since = self._buckets.pop(caller, (float(limits.burst * share), now))
            left = min(limits.burst * share, left + (now - since) * limits.rate * share)
            self._buckets[caller] = (max(left - 1, 0.0), now)
            if len(self._buckets) > limits.callers:
                self._buckets.popitem(last=False)
            if left < 1:
                raise RefusedError("rate", "too many requests: come back later")

    async def _body(self, scope: Scope, receive: Receive, most: int, place: "_Place") -> bytes:
        """The whole body, read here so that nothing behind us waits for a slow or endless one."""
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared[:20]) > most:
            raise RefusedError("too-large", f"at most {most} bytes")
        parts, size, began = [], 0, self._clock()
        try:
            while True:
                patience = self._limits.idle_s + size / self._limits.slowest - (self._clock() - began)
                if patience <= 0:
                    raise TimeoutError
                async with asyncio.timeout(min(patience, self._limits.idle_s)):
                    message = await receive()
                if message["type"] != "http.request":
                    raise RefusedError("slow", "the request was broken off")
                chunk = message.get("body", b"")
                before, size = size, size + len(chunk)
                if size > most:
                    raise RefusedError("too-large", f"at most {most} bytes")
                if before <= SMALL < size:
                    await self._recognise(scope)
                place.hold(size)
                parts.append(chunk)
                if not message.get("more_body", False):
                    return b"".join(parts)
        except TimeoutError as error:
            raise RefusedError("slow", "the request took too long") from error

    async def _recognise(self, scope: Scope) -> None:
        """Only nodes send much; Flower asks again who it is, when it knows what is said."""
        if not await asyncio.to_thread(self._knows, dict(scope["headers"])):
            raise RefusedError("unknown-node", "no node that we know signed this, or its clock is off")


class _Place:
    """What one body takes of the memory that all share."""

    def __init__(self, held: Counter[str], address: str, limits: Limits) -> None:
        self._held = held
        self._address = address
        self._limits = limits
        self._taken = 0

    def hold(self, size: int) -> None:
        """Take what a body of ``size`` bytes needs."""
        more = max(0, size - SMALL) - self._taken
        if not more:
            return
        total, own = self._held.total() + more, self._held[self._address] + more
        if total > self._limits.held or own > self._limits.share:
            raise RefusedError("busy", "too much at once: come back later")
        self._held[self._address] = own
        self._taken += more

    def leave(self) -> None:
        """Give all of it back."""
        if self._taken:
            self._held[self._address] -= self._taken
            self._held += Counter()  # forgets addresses that hold nothing


def _address(scope: Scope) -> str:
    return str((scope.get("client") or ("", 0))[0])


def _replay(body: bytes, receive: Receive) -> Receive:
    """A body that is there already, and then whatever happens to the connection."""
    given = False

    async def again() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def refuse(send: Send, refused: RefusedError) -> None:
    """Answer and hang up: what is left of the request is not read."""
    status, headers, body = problem(refused.code, str(refused))
    pairs = [(name.encode(), value.encode()) for name, value in {**headers, "connection": "close"}.items()]
    pairs.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
