"""What a node asks of its coordinator beside Flower: the time, a token, how things stand, and to be enrolled."""

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fleet.enrolment import Enrolment, Invitation, TokenRequest, Welcome, encoded
from fleet.errors import ClockError, LinkError, RefusedError
from fleet.signing import Sealed
from node.transport import Reply, Transport, checked

HOPELESS = timedelta(days=365)
_EARLY = timedelta(seconds=60)  # a token is renewed this long before it expires
_LONGEST = timedelta(hours=1)  # whatever the coordinator says
_MAX_JSON_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Standing:
    """How things stand at the coordinator.

    Attributes:
        round: The open round.
        shelf: The version of what is published: it grows with every base, release and step of a rollout.
        poll_s: When to ask again, in seconds.
    """

    round: int | None
    shelf: int
    poll_s: float


class CoordinatorClock:
    """The coordinator's time, as far as this node knows it: its own clock and an offset.

    Flower refuses a node that is 5 s fast or 5 minutes slow, so what a node signs bears this time.
    """

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self.offset = timedelta()

    def __call__(self) -> datetime:
        return self._clock() + self.offset

    def synchronise(self, transport: Transport) -> timedelta:
        """Ask the coordinator for the time; how far ahead of this clock it is.

        Raises:
            ClockError: The two are more than a year apart: no offset mends that.
            LinkError: It cannot be reached.
        """
        before = self._clock()
        data = _json(checked(transport.send("GET", "/api/v1/time", limit=_MAX_JSON_BYTES), "time"), "time")
        after = self._clock()
        offset = _instant(data, "now", "time") - (before + (after - before) / 2)
        if abs(offset) > HOPELESS:
            raise ClockError(
                f"this clock says {after:%Y-%m-%d %H:%M} UTC, the coordinator's {after + offset:%Y-%m-%d %H:%M}: "
                "more than a year apart; set the clock of this device"
            )
        self.offset = offset
        return offset


class CoordinatorClient:
    """An enrolled node's requests to its coordinator.

    Args:
        transport: Pinned to the coordinator.
        clock: The coordinator's time; it is synchronised here when a signature was refused for its time.
        node: The node's name.
        key: The node's key.
    """

    def __init__(self, transport: Transport, clock: CoordinatorClock, *, node: str, key: Ed25519PrivateKey) -> None:
        self.transport = transport
        self.clock = clock
        self._node = node
        self._key = key
        self._token = ""
        self._fresh_until = datetime.min.replace(tzinfo=UTC)

    def standing(self) -> Standing:
        """How things stand.

        Raises:
            LinkError: The link failed.
            RefusedError: The node is revoked or unknown.
        """
        data = _json(self.get("/api/v1/status", limit=_MAX_JSON_BYTES), "status")
        round_, shelf, poll_s = data.get("round"), data.get("shelf"), data.get("poll_s")
        if not _whole(shelf) or not (round_ is None or _whole(round_)) or not isinstance(poll_s, int | float):
            raise LinkError("status: the answer is malformed")
        return Standing(round_, shelf, float(poll_s))  # type: ignore[arg-type]

    def get(self, path: str, *, limit: int) -> Reply:
        """GET with a token; a token that is refused is renewed once. Errors as in ``standing``."""
        reply = self.transport.send("GET", path, headers=self.bearer(), limit=limit)
        if reply.status == 401:
            self.forget_token()
            reply = self.transport.send("GET", path, headers=self.bearer(), limit=limit)
        return checked(reply, path)

    def bearer(self) -> dict[str, str]:
        """The header that says who asks; a token is fetched when there is none, or it is about to expire."""
        if self.clock() >= self._fresh_until:
            try:
                self._renew()
            except RefusedError as error:
                if error.code != "clock":
                    raise
                self.clock.synchronise(self.transport)
                self._renew()
        return {"Authorization": f"Bearer {self._token}"}

    def forget_token(self) -> None:
        """Fetch another token next time."""
        self._fresh_until = datetime.min.replace(tzinfo=UTC)

    def _renew(self) -> None:
        request = TokenRequest(self._node, secrets.token_urlsafe(24), self.clock())
        data = _json(_post(self.transport, "/api/v1/token", request.sealed(self._key)), "token")
        token = data.get("token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise LinkError("token: the answer is malformed")
        now, expires = self.clock(), _instant(data, "expires", "token")
        self._fresh_until = min(max(expires, now), now + _LONGEST) - _EARLY
        self._token = token


def enrol(
    transport: Transport,
    clock: CoordinatorClock,
    invitation: Invitation,
    key: Ed25519PrivateKey,
    flower_key: ec.EllipticCurvePrivateKey,
) -> Welcome:
    """Join the fleet; after a lost answer, ask again with the same keys.

    Raises:
        LinkError: The coordinator cannot be reached, or the clocks are hopeless.
        RefusedError: It refuses, with its code: the invitation was used, or expired.
        TrustError: It is not the coordinator that the invitation is from.
    """
    clock.synchronise(transport)
    sealed = Enrolment.sealed(invitation, key, flower_key, now=clock())
    return Welcome.checked(_json(_post(transport, "/api/v1/enrol", sealed), "enrol"), invitation)


def _post(transport: Transport, path: str, sealed: Sealed) -> Reply:
    body = json.dumps({"body": encoded(sealed.body), "signature": encoded(sealed.signature)}).encode()
    headers = {"Content-Type": "application/json"}
    return checked(transport.send("POST", path, body=body, headers=headers, limit=_MAX_JSON_BYTES), path)


def _json(reply: Reply, what: str) -> dict[str, Any]:
    try:
        data = json.loads(reply.body)
    except (ValueError, RecursionError) as error:
        raise LinkError(f"{what}: the answer is no JSON") from error
    if not isinstance(data, dict):
        raise LinkError(f"{what}: the answer is no object")
    return data


def _instant(data: dict[str, Any], field: str, what: str) -> datetime:
    try:
        instant = datetime.fromisoformat(data[field])
        return instant.astimezone(UTC) if instant.tzinfo else instant.replace(tzinfo=UTC)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise LinkError(f"{what}: {field} is no time") from error


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
