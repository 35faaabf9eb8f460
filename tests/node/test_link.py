"""The link carries on whatever the network, the coordinator or the ClientApp do."""

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Context, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp

from fleet.errors import AllowanceError, BusyError, ClockError, LinkError, RefusedError, TrustError
from fleet.flwr_compat import Claim
from node import timing
from node.coordinator_client import CoordinatorClock, Standing
from node.link import CRASHED, UNAUTHENTICATED, FlowerPost, Link
from node.transport import Transport
from tests.http_server import Answer, Request, http_server

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
NODE = 1007


def ask(kind: str = "train.update", number: int = 1) -> Message:
    created = (NOW - timedelta(seconds=10)).timestamp()
    metadata = Metadata(1, f"message-{number}", 1, NODE, "", "", created, 3600.0, kind)
    make: Any = Message
    return make(RecordDict({"instruction": ConfigRecord({"body": b"do"})}), metadata=metadata)  # type: ignore[no-any-return]


@dataclass
class FakeFleet:
    """A SuperLink in memory; ``failing`` maps a method to what it raises next."""

    waiting: list[Message] = field(default_factory=list)
    received: list[Message] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    failing: dict[str, list[Exception]] = field(default_factory=dict)
    late: int = 0
    known: bool = True
    now: float = 0.0
    online_until: float = 0.0

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.failing.get(name):
            raise self.failing[name].pop(0)

    def _stay(self, interval_s: float) -> None:
        assert 10 <= interval_s <= 1800
        self.online_until = self.now + 2 * interval_s

    def activate(self, public_key: bytes, interval_s: float) -> int:
        self._called("activate")
        self._stay(interval_s)
        self.known = True
        return NODE

    def heartbeat(self, node_id: int, interval_s: float) -> bool:
        self._called("heartbeat")
        self._stay(interval_s)
        return self.known

    def deactivate(self, node_id: int) -> None:
        self._called("deactivate")

    def claim(self, node_id: int) -> Claim | None:
        self._called("claim")
        if not self.waiting:
            return None
        return Claim(self.waiting[0].metadata.message_id, 1, ("a",))

    def fetch(self, node_id: int, claim: Claim) -> Message | None:
        self._called("fetch")
        if self.late:
            self.late -= 1
            return None
        return self.waiting.pop(0)

    def confirm(self, node_id: int, claim: Claim) -> None:
        self._called("confirm")

    def push(self, node_id: int, reply: Message) -> None:
        self._called("push")
        self.received.append(reply)


class Node:
    """A link over a fake, the answers of its app, and what it recorded."""

    def __init__(self, *, node_id: int | None = None, standing: Callable[[], Standing] | None = None) -> None:
        self.fleet = FakeFleet()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.content = RecordDict({"update": ConfigRecord({"body": b"delta"})})
        self.raises: Exception | None = None
        self.asked = 0
        self.now = 1000.0
        app = ClientApp()

        @app.train("update")
        def train(message: Message, context: Context) -> Message:
            self.asked += 1
            if self.raises:
                raise self.raises
            return Message(self.content, reply_to=message)

        self.link = Link(
            self.fleet,
            app,
            public_key=b"key",
            clock=lambda: NOW,
            chance=lambda: 0.5,
            standing=standing,
            node_id=node_id,
            record=lambda event, **fields: self.events.append((event, fields)),
        )

    def step(self) -> float:
        """Seconds until the next step."""
        due = self.link.step(self.now)
        wait = due - self.now
        self.now = due
        return wait


def test_an_ask_is_answered_by_the_installed_app_and_the_next_poll_is_at_once() -> None:
    node = Node()
    node.fleet.waiting.append(ask())
    assert node.step() == 0
    reply = node.fleet.received[0]
    assert reply.content == node.content
    assert reply.metadata.reply_to_message_id == "message-1"
    assert node.fleet.calls == ["activate", "claim", "fetch", "confirm", "push"]


def test_a_reply_bears_the_coordinators_time_and_lives_as_long_as_the_ask() -> None:
    node = Node()
    node.fleet.waiting.append(ask())
    node.step()
    metadata = node.fleet.received[0].metadata
    assert metadata.created_at == NOW.timestamp()
    assert metadata.ttl == pytest.approx(3590)


def test_a_node_that_knows_its_number_comes_online_by_a_heartbeat() -> None:
    """A killed node is online in Flower's eyes for up to an hour, and cannot be activated until then."""
    node = Node(node_id=NODE)
    node.step()
    assert node.fleet.calls == ["heartbeat", "claim"]


def test_a_node_whose_number_is_unknown_is_activated_by_its_key() -> None:
    node = Node(node_id=5)
    node.fleet.known = False
    assert node.step() >= timing.FLOOR_S
    node.step()
    assert node.fleet.calls == ["heartbeat", "activate", "claim"]
    assert node.link.node_id == NODE


def test_a_node_whose_signature_is_refused_is_activated_by_its_key() -> None:
    node = Node(node_id=5)
    node.fleet.failing = {"heartbeat": [RefusedError("401", "no")]}
    node.step()
    node.step()
    assert node.fleet.calls == ["heartbeat", "activate", "claim"]


@pytest.mark.parametrize("polls", [[60.0] * 60, [5.0] * 60, [1800.0] * 60, [60.0, 5.0, 900.0, 20.0] * 15])
def test_the_node_stays_online_while_it_polls(polls: list[float]) -> None:
    told = iter(polls)
    node = Node(standing=lambda: Standing(None, 3, next(told)))
    for _ in polls:
        assert node.now == 1000.0 or node.now < node.fleet.online_until
        node.fleet.now = node.now
        node.step()


def test_a_longer_silence_is_announced_before_it_begins() -> None:
    polls = iter([10.0, 600.0, 600.0])
    node = Node(standing=lambda: Standing(None, 3, next(polls)))
    node.step()
    assert node.fleet.calls == ["activate", "claim"]
    node.step()
    assert node.fleet.calls[-2:] == ["claim", "heartbeat"]


@pytest.mark.parametrize("where", ["activate", "claim", "fetch", "push"])
@pytest.mark.parametrize(
    "error",
    [LinkError("cut"), TrustError("another server"), BusyError("busy", 30.0), ValueError("flower"), OSError("disk")],
    ids=lambda error: type(error).__name__,
)
def test_wherever_an_exchange_fails_it_goes_on_and_the_ask_is_answered_once(where: str, error: Exception) -> None:
    node = Node()
    node.fleet.waiting.append(ask())
    node.fleet.failing = {where: [error]}
    assert node.step() >= (30 if isinstance(error, BusyError) else timing.FLOOR_S)
    assert node.step() == 0
    assert len(node.fleet.received) == 1
    assert node.asked == 1
    assert [event for event, _ in node.events] == ["link-lost", "link-back"]


def test_what_only_a_person_can_mend_is_said_once_until_it_is_mended() -> None:
    def refused() -> Standing:
        raise RefusedError("revoked", "n1 was revoked")

    node = Node(standing=refused)
    errors = [LinkError("no route"), ClockError("it is 1970"), LinkError("no route"), ClockError("it is still 1970")]
    node.fleet.failing = {"activate": list(errors)}
    while node.fleet.failing["activate"]:
        node.step()
    node.fleet.waiting.append(ask())
    node.step()
    node.fleet.failing = {"claim": [RefusedError(UNAUTHENTICATED, "unknown")] * 2}
    while node.fleet.failing["claim"]:
        node.step()
    assert [fields["reason"] for event, fields in node.events if event == "shut-out"] == [
        "it is 1970",
        "n1 was revoked",
    ]


def test_whatever_asking_why_we_are_refused_does_the_link_goes_on() -> None:
    def broken() -> Standing:
        raise sqlite3.OperationalError("database is locked")

    node = Node(standing=broken)
    node.fleet.failing = {"activate": [RefusedError(UNAUTHENTICATED, "unknown")] * 2}
    while node.fleet.failing["activate"]:
        node.step()
    assert [event for event, _ in node.events] == ["link-lost"]


def test_a_long_outage_is_recorded_once_and_backs_off() -> None:
    node = Node()
    node.fleet.failing = {"activate": [LinkError("no route")] * 50}
    waits = [node.step() for _ in range(50)]
    assert waits[:4] == [1.5, 3.0, 6.0, 12.0]
    assert max(waits) <= timing.CAP_S
    assert [event for event, _ in node.events] == ["link-lost"]


def test_a_lost_confirmation_costs_nothing() -> None:
    node = Node()
    node.fleet.waiting.append(ask())
    node.fleet.failing = {"confirm": [LinkError("cut")]}
    assert node.step() == 0
    assert len(node.fleet.received) == 1


def test_parts_that_are_still_on_their_way_are_awaited_for_moments() -> None:
    node = Node()
    node.fleet.waiting.append(ask())
    node.fleet.late = 3
    waited = sum(node.step() for _ in range(4))
    assert len(node.fleet.received) == 1
    assert waited < 2


def test_parts_that_never_come_do_not_hold_the_node() -> None:
    node = Node()
    node.fleet.waiting.extend([ask(number=1), ask(number=2)])
    node.fleet.late = 8
    for _ in range(9):
        node.step()
    assert ("message-dropped", {"reason": "its parts never came"}) in node.events
    assert len(node.fleet.received) == 1


def test_a_message_that_is_no_good_is_dropped() -> None:
    node = Node()
    node.fleet.waiting.append(ask())
    node.fleet.failing = {"fetch": [RefusedError("message", "gone")]}
    node.step()
    assert ("message-dropped", {"reason": "gone"}) in node.events
    assert node.step() == 0
    assert len(node.fleet.received) == 1


def test_a_reply_that_nobody_waits_for_is_dropped() -> None:
    node = Node()
    node.fleet.waiting.append(ask())
    node.fleet.failing = {"push": [RefusedError("2007", "the run is over")]}
    assert node.step() == 0
    node.step()
    assert node.fleet.calls.count("push") == 1


def test_a_reply_survives_a_lost_number() -> None:
    node = Node()
    node.fleet.waiting.append(ask())
    node.fleet.failing = {"push": [RefusedError("401", "who are you")]}
    node.step()
    node.step()
    assert node.fleet.calls[-2:] == ["activate", "push"]
    assert len(node.fleet.received) == 1


@pytest.mark.parametrize("kind", ["train.update", "query.code", "evaluate"])
def test_what_the_app_cannot_do_is_answered_by_an_error_that_tells_nothing(kind: str) -> None:
    node = Node()
    node.raises = KeyError("a secret reading")
    node.fleet.waiting.append(ask(kind))
    assert node.step() == 0
    reply = node.fleet.received[0]
    assert reply.has_error()
    assert reply.error.code == CRASHED
    assert "secret" not in reply.error.reason


def test_a_round_that_waits_is_polled_in_seconds() -> None:
    node = Node(standing=lambda: Standing(7, 3, 300.0))
    node.content = RecordDict()
    node.fleet.waiting.append(ask())
    assert node.step() == 0
    assert node.step() <= timing.ASKED_S
    node.content = RecordDict({"update": ConfigRecord({"body": b"delta"})})
    node.fleet.waiting.append(ask(number=2))
    assert node.step() == 0
    assert node.step() >= 150  # the round has its update


def test_how_things_stand_is_kept_for_the_updater() -> None:
    node = Node(standing=lambda: Standing(None, 12, 120.0))
    assert 60 <= node.step() <= 120
    assert node.link.standing == Standing(None, 12, 120.0)


def test_a_spent_allowance_rests_until_tomorrow() -> None:
    node = Node()
    node.fleet.failing = {"activate": [AllowanceError("used up")]}
    assert 12 * 3600 <= node.step() <= 13 * 3600
    assert node.events == [("link-rests", {"reason": "used up"})]


def test_goodbye_is_said_once_it_came_online_and_may_fail() -> None:
    node = Node(node_id=NODE)
    node.link.close()
    assert node.fleet.calls == []
    node.step()
    node.fleet.failing = {"deactivate": [LinkError("gone")]}
    node.link.close()
    assert node.fleet.calls[-1] == "deactivate"


def test_a_signature_is_used_for_a_minute_and_made_anew_by_the_coordinators_time_when_it_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    skew = timedelta(hours=2)
    signed: list[str] = []

    def answer(request: Request) -> Answer:
        if request.path == "/api/v1/time":
            return 200, {}, json.dumps({"now": (datetime.now(UTC) + skew).isoformat()}).encode()
        signed.append(request.headers["flwr-timestamp"])
        off = abs(datetime.fromisoformat(signed[-1]) - datetime.now(UTC) - skew)
        return (401, {}, b"") if off > timedelta(seconds=5) else (200, {}, request.body)

    with http_server(answer) as port:
        clock = CoordinatorClock(lambda: datetime.now(UTC))
        post = FlowerPost(Transport(f"http://127.0.0.1:{port}"), key, clock)
        assert [post("/v1/fleet/x", b"body", {}) for _ in range(3)] == [b"body"] * 3
        assert len(set(signed)) == 2
        clock.offset += timedelta(seconds=61)
        skew += timedelta(seconds=61)
        post("/v1/fleet/x", b"body", {})
        assert len(set(signed)) == 3


def test_a_node_that_is_refused_at_any_time_is_told_so() -> None:
    def answer(request: Request) -> Answer:
        if request.path == "/api/v1/time":
            return 200, {}, json.dumps({"now": datetime.now(UTC).isoformat()}).encode()
        return 401, {}, b'{"detail": "Invalid SuperNode authentication"}'

    with http_server(answer) as port:
        key = ec.generate_private_key(ec.SECP384R1())
        post = FlowerPost(Transport(f"http://127.0.0.1:{port}"), key, CoordinatorClock(lambda: datetime.now(UTC)))
        with pytest.raises(RefusedError, match="Invalid SuperNode") as raised:
            post("/v1/fleet/x", b"", {})
        assert raised.value.code == UNAUTHENTICATED
