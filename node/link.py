"""The node's link to Flower's Fleet API: comes online, asks for messages, has its own ClientApp answer them."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Error, Message
from flwr.clientapp import ClientApp

from fleet.errors import AllowanceError, BusyError, ClockError, FleetError, LinkError, RefusedError
from fleet.events import Record, ignore
from fleet.flwr_compat import Claim, context, flower_headers, stamp
from node.coordinator_client import CoordinatorClock, Standing
from node.timing import Pace, until_tomorrow
from node.transport import Transport, checked

CRASHED = 2  # Flower's code for a ClientApp that raised
UNAUTHENTICATED = "401"
_SIGNED = timedelta(seconds=60)  # for how long one signature is used; Flower takes it for five minutes
_SHORTEST_BEAT_S, _LONGEST_BEAT_S = 10.0, 1800.0  # what Flower admits
_LATE_S = 0.1  # first wait for parts of a message that its sender is still bringing; doubles
_LATE_TRIES = 7


class Fleet(Protocol):
    """The hands of the link: ``fleet.flwr_compat.FleetApi``, or a fake of it."""

    def activate(self, public_key: bytes, interval_s: float) -> int: ...

    def heartbeat(self, node_id: int, interval_s: float) -> bool: ...

    def deactivate(self, node_id: int) -> None: ...

    def claim(self, node_id: int) -> Claim | None: ...

    def fetch(self, node_id: int, claim: Claim) -> Message | None: ...

    def confirm(self, node_id: int, claim: Claim) -> None: ...

    def push(self, node_id: int, reply: Message) -> None: ...


class Link:
    """One node's conversation with its coordinator, a step at a time; whatever fails, the next step tries again.

    Code that a server sends is never fetched: messages go to ``app``, which is installed on this node.

    Args:
        fleet: Flower's Fleet API.
        app: The node's ClientApp; called from the thread that calls ``step``.
        public_key: The node's key for Flower, as PEM.
        clock: The coordinator's time.
        standing: Asks the coordinator how things stand; None where only Flower answers.
        chance: Uniform random numbers in [0, 1), for jitter.
        node_id: The node's number in Flower, if it is known. A node that was killed is still online in Flower's
            eyes and cannot be activated again, but can go on under its number.
    """

    def __init__(
        self,
        fleet: Fleet,
        app: ClientApp,
        *,
        public_key: bytes,
        clock: Callable[[], datetime],
        chance: Callable[[], float],
        standing: Callable[[], Standing] | None = None,
        node_id: int | None = None,
        record: Record = ignore,
    ) -> None:
        self._fleet = fleet
        self._app = app
        self._public_key = public_key
        self._clock = clock
        self._chance = chance
        self._ask_standing = standing
        self._record = record
        self.node_id = node_id
        self.pace = Pace()
        self.standing: Standing | None = None
        self._beat: tuple[float, float] | None = None  # when, and for how long
        self._claim: Claim | None = None
        self._late = 0
        self._reply: Message | None = None
        self._shut_out = False

    def step(self, now: float) -> float:
        """Exchange at most one message; when to come back, on the clock that ``now`` is of, in seconds.

        Never raises what the network, the coordinator or the ClientApp did.
        """
        before = self.pace.failures
        try:
            soon = self._exchange(now)
        except AllowanceError as error:
            self._record("link-rests", reason=str(error))
            return now + until_tomorrow(self._clock(), self._chance())
        except Exception as error:  # noqa: BLE001 - the loop of a program must carry on
            self._failed(error)
            return now + self.pace.wait(now, self._chance())
        self.pace = self.pace.reached()
        self._shut_out = False
        if before:
            self._record("link-back", failures=before)
        return now + (self.pace.wait(now, self._chance()) if soon is None else soon)

    def close(self) -> None:
        """Say goodbye, if somebody listens."""
        if self.node_id is not None and self._beat is not None:
            with suppress(FleetError):
                self._fleet.deactivate(self.node_id)

    def _failed(self, error: Exception) -> None:
        if isinstance(error, RefusedError) and error.code == UNAUTHENTICATED:
            self.node_id, self._beat = None, None  # perhaps the coordinator lost its book, and we have another number
            error = self._explained(error)
        self.pace = self.pace.failed(error.retry_after_s if isinstance(error, BusyError) else 0.0)
        if self.pace.failures == 1:  # once, not for every retry
            reason = str(error) if isinstance(error, FleetError) else type(error).__name__
            self._record("link-lost", reason=reason)
        if _needs_a_person(error) and not self._shut_out:
            self._shut_out = True
            self._record("shut-out", reason=str(error))

    def _explained(self, error: Exception) -> Exception:
        """Flower knows no revoked node any more; our own API says why."""
        try:
            if self._ask_standing:
                self._ask_standing()
        except Exception as reason:  # noqa: BLE001 - as in step
            return reason if isinstance(reason, FleetError) else error
        return error

    def _exchange(self, now: float) -> float | None:
        """One exchange; in how many seconds the next one is due, None if nothing waits."""
        node_id = self._online(now)
        if self._reply is None:
            asked = self._receive(node_id)
            if asked is None:
                return self._later(now)
            self._reply = self._answer(asked, node_id)
        reply = self._reply
        self._send(node_id, reply)
        self._reply = None
        if reply.metadata.message_type.startswith("train") and reply.has_content():
            self.pace = self.pace.answered(now, update=len(reply.content) > 0)
        return 0.0

    def _online(self, now: float) -> int:
        interval = min(max(self.pace.poll_s, _SHORTEST_BEAT_S), _LONGEST_BEAT_S)
        if self.node_id is None:
            self.node_id = self._fleet.activate(self._public_key, interval)
            self._beat = (now, interval)
        elif self._beat is None or interval > self._beat[1] or now - self._beat[0] >= self._beat[1] / 2:
            if not self._fleet.heartbeat(self.node_id, interval):
                self.node_id = None
                raise LinkError("the coordinator does not know this node by its number")
            self._beat = (now, interval)
        return self.node_id

    def _receive(self, node_id: int) -> Message | None:
        self._claim = self._claim or self._fleet.claim(node_id)
        if self._claim is None:
            return None
        try:
            asked = self._fleet.fetch(node_id, self._claim)
        except RefusedError as error:
            if error.code == UNAUTHENTICATED:
                raise
            self._drop(str(error))
            return None
        if asked is not None:
            with suppress(LinkError, RefusedError):  # unconfirmed parts are forgotten with their run
                self._fleet.confirm(node_id, self._claim)
            self._claim, self._late = None, 0
        return asked

    def _later(self, now: float) -> float | None:
        """Nothing arrived: because parts of a message are late, or because nothing was sent."""
        if self._claim is not None:
            self._late += 1
            if self._late <= _LATE_TRIES:
                return _LATE_S * float(2**self._late)
            self._drop("its parts never came")
        elif self._ask_standing is not None:
            self.standing = self._ask_standing()
            self.pace = self.pace.told(self.standing.round, self.standing.poll_s)
            self._online(now)  # a longer silence is announced before it begins
        return None

    def _drop(self, reason: str) -> None:
        self._record("message-dropped", reason=reason)
        self._claim, self._late = None, 0

    def _answer(self, asked: Message, node_id: int) -> Message:
        try:
            reply = self._app(asked, context(asked.metadata.run_id, node_id))
        except Exception as error:  # noqa: BLE001 - whatever a ClientApp raises, Flower answers with an error
            self._record("app-failed", reason=repr(error))
            reply = Message(Error(CRASHED, type(error).__name__), reply_to=asked)  # no word of what it worked on
        stamp(reply, asked, self._clock())
        return reply

    def _send(self, node_id: int, reply: Message) -> None:
        try:
            self._fleet.push(node_id, reply)
        except RefusedError as error:
            if error.code == UNAUTHENTICATED:
                raise
            self._record("reply-refused", reason=str(error))


def _needs_a_person(error: Exception) -> bool:
    """Whether trying again will not do."""
    return isinstance(error, ClockError) or (isinstance(error, RefusedError) and error.code == "revoked")


class FlowerPost:
    """Carries Flower's requests over the pinned transport, signed with the node's key and the coordinator's time."""

    def __init__(self, transport: Transport, key: EllipticCurvePrivateKey, clock: CoordinatorClock) -> None:
        self._transport = transport
        self._key = key
        self._clock = clock
        self._signed: tuple[datetime, Mapping[str, str]] | None = None

    def __call__(self, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        """The body of the answer.

        Raises:
            LinkError: The link failed.
            RefusedError: The SuperLink refused; code ``401`` where it does not take the signature.
            TrustError: The server is not our coordinator.
        """
        reply = self._transport.send("POST", path, body=body, headers={**headers, **self._signature()})
        if reply.status == 401:  # perhaps a clock drifted
            self._clock.synchronise(self._transport)
            self._signed = None
            reply = self._transport.send("POST", path, body=body, headers={**headers, **self._signature()})
        return checked(reply, path).body

    def _signature(self) -> Mapping[str, str]:
        now = self._clock()
        if self._signed is None or not timedelta(0) <= now - self._signed[0] < _SIGNED:
            self._signed = now, flower_headers(self._key, now)
        return self._signed[1]
