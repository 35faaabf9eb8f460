"""What a node asks of its coordinator beside Flower."""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fleet.enrolment import Enrolment, Invitation, TokenRequest, Welcome
from fleet.errors import BusyError, LinkError, RefusedError, TrustError
from fleet.settings import Settings
from fleet.signing import Sealed, sha256, unseal
from fleet.task import Task
from node.coordinator_client import CoordinatorClient, CoordinatorClock, Standing, enrol
from node.transport import Transport
from tests.http_server import Answer, Request, http_server

ROOT = b"root metadata"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
TASK = Task.of_spec(
    {
        "name": "toy",
        "signature": {"input": "x", "shape": [2], "low": -1.0, "high": 1.0, "classes": ["left", "right"]},
        "unit": {"name": "a point"},
        "training": {"learning_rate": 0.5, "examples": 10},
    }
)
INSTRUCTIONS = Ed25519PrivateKey.from_private_bytes(bytes(32))


def sealed(request: Request) -> Sealed:
    data = json.loads(request.body)
    assert set(data) == {"body", "signature"}
    return Sealed(*(base64.b64decode(data[name], validate=True) for name in ("body", "signature")))


@dataclass
class Desk:
    """A coordinator's device API, as coordinator/api/device.py documents it, in memory."""

    status: dict[str, Any] = field(default_factory=lambda: {"round": 7, "shelf": 3, "poll_s": 60})
    skew: timedelta = timedelta()
    tokens: list[str] = field(default_factory=list)
    nonces: set[str] = field(default_factory=set)
    life: timedelta = timedelta(minutes=10)
    revoked: bool = False
    asked: list[str] = field(default_factory=list)
    instead: Answer | None = None

    def now(self) -> datetime:
        return datetime.now(UTC) + self.skew

    def __call__(self, request: Request) -> Answer:
        self.asked.append(request.path)
        if self.instead:
            return self.instead
        name = request.path.removeprefix("/api/v1/")
        answer: Answer = getattr(self, f"_{name}")(request)
        return answer

    def _time(self, request: Request) -> Answer:
        assert "authorization" not in request.headers
        return _ok({"now": self.now().isoformat()})

    def _token(self, request: Request) -> Answer:
        fields = TokenRequest.of(unseal("token-request", sealed(request), KEY.public_key()))
        if self.revoked:
            return _problem(403, "revoked")
        if abs(fields.time - self.now()) > timedelta(minutes=5):
            return _problem(401, "clock")
        assert fields.nonce not in self.nonces
        self.nonces.add(fields.nonce)
        self.tokens.append(f"token-{len(self.tokens)}")
        return _ok({"token": self.tokens[-1], "expires": (self.now() + self.life).isoformat()})

    def _status(self, request: Request) -> Answer:
        if not self.tokens or request.headers.get("authorization") != f"Bearer {self.tokens[-1]}":
            return _problem(401, "token")
        return _ok(self.status)

    def _enrol(self, request: Request) -> Answer:
        wish = Enrolment.opened(sealed(request))
        if abs(wish.time - self.now()) > timedelta(minutes=5):
            return _problem(422, "clock")
        if wish.secret != "secret":
            return _problem(403, "invitation")
        return _ok(
            Welcome(wish.name, ROOT, INSTRUCTIONS.public_key(), TASK, "task.py:TASK", Settings(), 1007).to_json(
                INSTRUCTIONS
            )
        )


def _ok(data: dict[str, Any]) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(data).encode()


def _problem(status: int, code: str) -> Answer:
    return status, {}, json.dumps({"title": "No", "status": status, "code": code, "detail": f"it is {code}"}).encode()


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def transport(desk: Desk) -> Iterator[Transport]:
    with http_server(desk) as port:
        transport = Transport(f"http://127.0.0.1:{port}")
        yield transport
        transport.close()


def clock() -> CoordinatorClock:
    return CoordinatorClock(lambda: datetime.now(UTC))


@pytest.fixture
def client(transport: Transport) -> CoordinatorClient:
    return CoordinatorClient(transport, clock(), node="d1", key=KEY)


def test_a_node_hears_how_things_stand(client: CoordinatorClient) -> None:
    assert client.standing() == Standing(7, 3, 60.0)


def test_a_token_is_used_until_shortly_before_it_expires(desk: Desk, client: CoordinatorClient) -> None:
    for _ in range(3):
        client.standing()
    assert len(desk.tokens) == 1
    client.clock.offset = timedelta(minutes=9, seconds=30)
    desk.skew = timedelta(minutes=9, seconds=30)
    client.standing()
    assert len(desk.tokens) == 2


def test_a_token_that_is_refused_is_renewed_once(desk: Desk, client: CoordinatorClient) -> None:
    client.standing()
    desk.tokens.append("another key now")
    assert client.standing() == Standing(7, 3, 60.0)


def test_a_revoked_node_is_told_so(desk: Desk, client: CoordinatorClient) -> None:
    desk.revoked = True
    with pytest.raises(RefusedError, match="it is revoked") as raised:
        client.standing()
    assert raised.value.code == "revoked"


@pytest.mark.parametrize("skew", [timedelta(days=100), timedelta(days=-100), timedelta(minutes=6)])
def test_a_wrong_clock_is_corrected_when_it_is_refused(desk: Desk, client: CoordinatorClient, skew: timedelta) -> None:
    desk.skew = skew
    assert client.standing() == Standing(7, 3, 60.0)
    assert abs(client.clock() - desk.now()) < timedelta(seconds=2)


@pytest.mark.parametrize("skew", [timedelta(days=-400), timedelta(days=20_000)])
def test_a_hopeless_clock_is_told_to_a_person(desk: Desk, client: CoordinatorClient, skew: timedelta) -> None:
    desk.skew = skew
    with pytest.raises(LinkError, match=r"more than a year apart; set the clock of this device"):
        client.clock.synchronise(client.transport)
    assert client.clock.offset == timedelta()


@pytest.mark.parametrize(
    "instead",
    [
        (200, {}, b""),
        (200, {}, b"[]"),
        (200, {}, b"[" * 100_000),
        (200, {}, b'{"now": "tomorrow", "token": 7, "round": 1.5}'),
        (200, {}, b'{"now": 5, "token": "\\n", "expires": "x"}'),
        (200, {}, b"\xff\xfe"),
        (200, {}, b" " * 300_000),
        (302, {"Location": "/"}, b""),
        (500, {}, b"boom"),
    ],
    ids=range(9),
)
def test_nonsense_is_a_link_error(desk: Desk, client: CoordinatorClient, instead: Answer) -> None:
    desk.instead = instead
    with pytest.raises(LinkError):
        client.clock.synchronise(client.transport)
    with pytest.raises(LinkError):
        client.standing()
    desk.instead = None
    client.bearer()
    desk.status = {"round": True, "shelf": 1, "poll_s": 1}
    with pytest.raises(LinkError):
        client.standing()


def test_a_busy_coordinator_says_when_to_come_back(desk: Desk, client: CoordinatorClient) -> None:
    desk.instead = 503, {"Retry-After": "11"}, b""
    with pytest.raises(BusyError) as raised:
        client.standing()
    assert raised.value.retry_after_s == 11


def invitation(transport: Transport, *, secret: str = "secret", root: bytes = ROOT) -> Invitation:
    return Invitation("http://h:1", "d1", secret, sha256(root), sha256(INSTRUCTIONS.public_key().public_bytes_raw()))


def test_a_new_node_is_enrolled_whatever_its_clock_says(desk: Desk, transport: Transport) -> None:
    desk.skew = timedelta(days=30)
    flower_key = ec.generate_private_key(ec.SECP384R1())
    welcome = enrol(transport, clock(), invitation(transport), KEY, flower_key)
    assert (welcome.name, welcome.root, welcome.flower_id) == ("d1", ROOT, 1007)


def test_a_used_invitation_is_refused(transport: Transport) -> None:
    with pytest.raises(RefusedError, match="it is invitation"):
        enrol(transport, clock(), invitation(transport, secret="x"), KEY, ec.generate_private_key(ec.SECP384R1()))


def test_a_coordinator_with_another_root_is_not_trusted(transport: Transport) -> None:
    with pytest.raises(TrustError):
        enrol(transport, clock(), invitation(transport, root=b"x"), KEY, ec.generate_private_key(ec.SECP384R1()))
