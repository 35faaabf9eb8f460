"""Our link with a stock SuperLink, over good links and bad ones."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from benchmarks.proxy import Fault, Proxy
from benchmarks.superlink import Certificates, SuperLink, superlink
from fleet.enrolment import pem
from fleet.flwr_compat import FleetApi
from node.coordinator_client import CoordinatorClock
from node.link import FlowerPost, Link
from node.transport import Transport
from tests.authority import Authority

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Flower's own warnings
PAYLOAD = random.Random(0).randbytes(100_000)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    with superlink(tmp_path_factory.mktemp("plain")) as link:
        yield link


def answering(asked: list[bytes]) -> ClientApp:
    app = ClientApp()

    @app.train("update")
    def update(message: Message, context: Context) -> Message:
        body = message.content.config_records["instruction"]["body"]
        asked.append(bytes(body))  # type: ignore[arg-type]
        delta = Array("float32", (len(PAYLOAD) // 4,), "fleet.f32.v1", PAYLOAD)
        content = {"update": ConfigRecord({"body": body}), "delta": ArrayRecord({"delta": delta})}
        return Message(RecordDict(content), reply_to=message)

    return app


@dataclass
class Node:
    """A link over HTTP, and its time."""

    link: Link
    clock: CoordinatorClock
    events: list[tuple[str, dict[str, Any]]]
    asked: list[bytes]
    now: float = 0.0

    def step(self) -> float:
        due = self.link.step(self.now)
        wait = due - self.now
        self.now = due
        return wait

    def until_answered(self, body: bytes = b"do", steps: int = 60) -> None:
        """Step until the reply is there whole: Flower's Grid would wait for the rest of it, and we in its thread."""
        for _ in range(steps):
            self.step()
            if body in self.asked and self.link._reply is None:
                return
        raise AssertionError(self.events)


@contextmanager
def node(
    superlink: SuperLink, port: int, *, silence_s: float = 10.0, off: timedelta = timedelta()
) -> Iterator[tuple[Node, int]]:
    """A node that is registered, and reaches the SuperLink by ``port``; its clock is ``off``."""
    key = ec.generate_private_key(ec.SECP384R1())
    number = superlink.register(pem(key.public_key()))
    clock = CoordinatorClock(lambda: datetime.now(UTC) + off)
    url = superlink.url.replace(str(superlink.port), str(port))
    transport = Transport(url, authority=superlink.authority, silence_s=silence_s)
    events: list[tuple[str, dict[str, Any]]] = []
    asked: list[bytes] = []
    link = Link(
        FleetApi(FlowerPost(transport, key, clock)),
        answering(asked),
        public_key=pem(key.public_key()),
        clock=clock,
        chance=lambda: 0.5,
        record=lambda event, **fields: events.append((event, fields)),
    )
    yield Node(link, clock, events, asked), number
    link.close()
    transport.close()


def ask(number: int, body: bytes = b"do") -> Message:
    return Message(RecordDict({"instruction": ConfigRecord({"body": body})}), number, "train.update")


def test_an_ask_of_a_stock_superlink_is_answered(plain: SuperLink) -> None:
    with node(plain, plain.port) as (ours, number), plain.run() as grid:
        ours.step()
        assert number in grid.get_node_ids()
        for body in (b"one", b"two"):
            ids = grid.push_messages([ask(number, body)])
            ours.until_answered(body)
            (reply,) = grid.pull_messages(ids)
            assert reply.metadata.src_node_id == number
            assert reply.content.config_records["update"]["body"] == body
            assert reply.content.array_records["delta"]["delta"].data == PAYLOAD
        ours.link.close()
        assert number not in grid.get_node_ids()
    assert ours.events == []


def test_what_the_app_cannot_do_reaches_the_asker_as_an_error(plain: SuperLink) -> None:
    with node(plain, plain.port) as (ours, number), plain.run() as grid:
        ours.step()
        ids = grid.push_messages([Message(RecordDict({"x": ConfigRecord()}), number, "query.unknown")])
        while ours.step() > 0:
            pass
        (reply,) = grid.pull_messages(ids)
        assert reply.has_error()


def test_a_killed_node_goes_on_under_its_number(plain: SuperLink) -> None:
    with node(plain, plain.port) as (ours, number), plain.run() as grid:
        ours.step()
        ours.link._beat = None  # as a new process over the same identity: it is still online in Flower's eyes
        ids = grid.push_messages([ask(number)])
        ours.until_answered()
        assert len(list(grid.pull_messages(ids))) == 1


FAULTS = {
    "cut at once": Fault(truncate=0),
    "cut in the head": Fault(truncate=40),
    "cut in the body": Fault(truncate=160),
    "cut after some answers": Fault(truncate=700),
    "reset": Fault(truncate=300, reset=True),
    "half-open": Fault(half_open=True),
    "refused": Fault(refuse=True),
    "slow drip": Fault(drip_s=0.3),
    "duplicated": Fault(duplicate=True),
    "slow": Fault(round_trip_s=0.1),
}


@pytest.mark.parametrize("name", FAULTS)
def test_after_a_bad_link_the_next_ask_is_answered_once(plain: SuperLink, name: str) -> None:
    with (
        Proxy(("127.0.0.1", plain.port)) as proxy,
        node(plain, proxy.port, silence_s=0.5) as (ours, number),
        plain.run() as grid,
    ):
        ours.step()
        first = grid.push_messages([ask(number, b"first")])
        proxy.fault = FAULTS[name]
        proxy.cut()
        for _ in range(3):
            ours.step()
        proxy.fault = Fault()
        proxy.cut()
        ours.step()
        second = grid.push_messages([ask(number, b"second")])
        ours.until_answered(b"second")
        replies = list(grid.pull_messages(second))
        contents = [reply.content for reply in replies if reply.has_content()]
        assert [content.config_records["update"]["body"] for content in contents] == [b"second"]
        assert len(list(grid.pull_messages(first))) <= 1
        assert ours.asked.count(b"second") == 1


def test_cut_at_random_bytes_a_reply_is_whole_or_absent(plain: SuperLink) -> None:
    with (
        Proxy(("127.0.0.1", plain.port), Fault(loss=0.3), seed=1) as proxy,
        node(plain, proxy.port, silence_s=1.0) as (ours, number),
        plain.run() as grid,
    ):
        answered = 0
        for index in range(12):
            ids = grid.push_messages([ask(number, b"%d" % index)])
            for _ in range(6):
                ours.step()
            while ours.link._reply is not None:
                ours.step()
            for reply in grid.pull_messages(ids):
                if reply.has_error():  # Flower's own: the ask was lost with the answer that carried it
                    continue
                assert reply.content.array_records["delta"]["delta"].data == PAYLOAD
                answered += 1
            proxy.cut()
        assert answered >= 4


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    folder = tmp_path_factory.mktemp("guarded")
    authority = Authority.make("ours")
    authority.context(folder)
    (folder / "authority.pem").write_text(authority.pem)
    server = folder / "server.pem"
    with superlink(folder, Certificates(folder / "authority.pem", server, server)) as link:
        yield link


def test_with_tls_and_node_authentication(guarded: SuperLink) -> None:
    with node(guarded, guarded.port) as (ours, number), guarded.run() as grid:
        ours.step()
        ids = grid.push_messages([ask(number)])
        ours.until_answered()
        (reply,) = grid.pull_messages(ids)
        assert reply.content.array_records["delta"]["delta"].data == PAYLOAD


def test_a_node_that_nobody_registered_is_refused_and_goes_on(guarded: SuperLink) -> None:
    with node(guarded, guarded.port) as (ours, _):
        ours.link._public_key = pem(ec.generate_private_key(ec.SECP384R1()).public_key())
        waits = [ours.step() for _ in range(5)]
        assert min(waits) >= 1.0
        assert [event for event, _ in ours.events] == ["link-lost"]


@pytest.mark.parametrize("off", [timedelta(days=-20_000), timedelta(minutes=-10), timedelta(hours=14)])
def test_a_node_with_a_wrong_clock_takes_part_once_it_knows_the_time(guarded: SuperLink, off: timedelta) -> None:
    """Flower refuses nodes that are more than 5 s fast, and drops replies that its clock finds expired."""
    with node(guarded, guarded.port, off=off) as (ours, number), guarded.run() as grid:
        ours.clock.offset = -off
        ours.step()
        ids = grid.push_messages([ask(number)])
        ours.until_answered()
        (reply,) = grid.pull_messages(ids)
        assert not reply.has_error()
