"""The gate of the public listener: two doors, bounded, patient, fair."""

import asyncio
import json
import tracemalloc
from collections.abc import MutableMapping
from typing import Any

import pytest

from coordinator.api.gate import CALL, SMALL, Gate, Headers, Limits, Receive, Scope, Send
from coordinator.api.problems import Faultless
from coordinator.reply import Longest

NODE = {"flwr-public-key": "a node's"}
Reply = tuple[int, dict[str, str], bytes]


class Echo:
    """An application that says who it is and how long the body was."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bodies: list[bytes] = []
        self.status = 200

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.bodies.append((await receive())["body"])
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": self.name.encode()})


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Door:
    def __init__(self, **limits: Any) -> None:
        self.fleet, self.device, self.time = Echo("fleet"), Echo("device"), Time()
        self.recorded: list[tuple[str, str]] = []
        named = {"longest": Longest(10 * SMALL)} | limits
        self.gate = Gate(self.fleet, self.device, self._knows, self._replies, Limits(**named), self.time, self._record)

    def _knows(self, headers: Headers) -> bool:
        return headers.get(b"flwr-public-key") == b"a node's"

    def _replies(self, body: bytes) -> bool:
        return body != b"forged"

    def _record(self, event: str, **fields: Any) -> None:
        assert event == "request-refused"
        self.recorded.append((fields["code"], fields["path"]))

    def ask(self, path: str, *chunks: bytes, headers: dict[str, str] | None = None, address: str = "10.0.0.1") -> Reply:
        return asyncio.run(self.asking(path, *chunks, headers=headers, address=address))

    async def asking(
        self,
        path: str,
        *chunks: bytes,
        headers: dict[str, str] | None = None,
        address: str = "10.0.0.1",
        silent: bool = False,
    ) -> Reply:
        sent: list[MutableMapping[str, Any]] = []
        parts = iter(chunks)
        left = len(chunks)

        async def receive() -> MutableMapping[str, Any]:
            nonlocal left
            left -= 1
            if silent and left < 0:
                await asyncio.sleep(60)
            return {"type": "http.request", "body": next(parts, b""), "more_body": left > 0 or silent}

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        pairs = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        scope = {"type": "http", "path": path, "headers": pairs, "client": (address, 1)}
        await self.gate(scope, receive, send)
        named = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], named, sent[1]["body"]


def code(reply: Reply) -> str:
    assert reply[1]["content-type"] == "application/problem+json"
    return str(json.loads(reply[2])["code"])


def test_each_door_leads_to_its_application() -> None:
    door = Door()
    assert door.ask("/v1/fleet/pull-messages", b"x")[2] == b"fleet"
    assert door.ask("/api/v1/time")[2] == b"device"
    assert (door.fleet.bodies, door.device.bodies) == ([b"x"], [b""])


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/docs",
        "/openapi.json",
        "/health",
        "/v1/control/list-runs",
        "/v1/runtime/acquire-task",
        "/v1/fleet",
        "/v1/fleet/",
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/pull-messages/",
        "//v1/fleet/pull-messages",
        "/V1/fleet/pull-messages",
        "/api/v1/../../v1/control/list-runs",
        "/api/v1/repository/metadata/../../keys/root.pem",
        "/api/v1/%2e%2e/x",
        "/api/v1/a\x00b",
        "/admin/v1/status",
        "",
    ],
)
def test_everything_else_is_not_there(path: str) -> None:
    door = Door()
    reply = door.ask(path)
    assert (reply[0], code(reply)) == (404, "not-found")
    assert not door.fleet.bodies + door.device.bodies


def test_a_body_arrives_whole_in_whatever_pieces_it_came() -> None:
    door = Door()
    door.ask("/v1/fleet/push-object", b"ab", b"", b"cd")
    assert door.fleet.bodies == [b"abcd"]


@pytest.mark.parametrize(
    ("path", "most"),
    [
        pytest.param("push-object", Longest(10 * SMALL).part, id="a part of a reply"),
        pytest.param("push-messages", Longest(10 * SMALL).table, id="a table of contents"),
        pytest.param("pull-messages", CALL, id="a call"),
    ],
)
@pytest.mark.parametrize("declared", [False, True], ids=["as it comes", "as declared"])
def test_a_body_that_is_too_long_for_its_route_is_refused_and_the_connection_ends(
    path: str, most: int, declared: bool
) -> None:
    door = Door()
    assert door.ask(f"/v1/fleet/{path}", b"x" * most, headers=NODE)[0] == 200
    headers = NODE | ({"content-length": str(most + 1)} if declared else {})
    reply = door.ask(f"/v1/fleet/{path}", b"x" * (most - 40), b"x" * 41, headers=headers)
    assert (reply[0], code(reply), reply[1]["connection"]) == (413, "too-large", "close")
    assert len(door.fleet.bodies) == 1


def test_limits_follow_from_the_longest_reply_of_the_task() -> None:
    small, large = Longest.of(1000), Longest.of(100_000_000)
    assert (small.part, small.table) < (2**20 + 8192, 16 * 1024)
    assert large.part < 6 * 2**20  # Flower cuts arrays into 5 MiB
    assert large.parts > 400_000_000 / (5 * 2**20) + 5


def test_much_is_taken_only_from_a_node() -> None:
    door = Door()
    assert door.ask("/v1/fleet/push-object", b"x" * SMALL)[0] == 200
    reply = door.ask("/v1/fleet/push-object", b"x" * SMALL, b"x")
    assert (reply[0], code(reply)) == (401, "unknown-node")
    assert door.ask("/v1/fleet/push-object", b"x" * SMALL, b"x", headers=NODE)[0] == 200


def test_what_a_node_pushes_is_its_own_reply_and_whatever_else_it_calls_is_not_looked_into() -> None:
    door = Door()
    reply = door.ask("/v1/fleet/push-messages", b"forged", headers=NODE)
    assert (reply[0], code(reply)) == (403, "not-a-reply")
    assert door.recorded == [("not-a-reply", "/v1/fleet/push-messages")]
    assert door.ask("/v1/fleet/push-messages", b"honest", headers=NODE)[0] == 200
    assert door.ask("/v1/fleet/push-object", b"forged", headers=NODE)[0] == 200
    assert door.fleet.bodies == [b"honest", b"forged"]


def test_a_body_of_two_gigabytes_costs_no_memory() -> None:
    door = Door()
    declared = door.ask("/v1/fleet/push-object", b"x", headers={"content-length": str(2**31)})
    assert code(declared) == "too-large"
    chunk = bytes(2**16)
    tracemalloc.start()
    reply = door.ask("/api/v1/enrol", *[chunk] * (2**31 // len(chunk)))
    assert code(reply) == "too-large"
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()


async def beside_a_slow_one(door: Door, address: str, *chunks: bytes) -> tuple[Reply, Reply]:
    """The outcome of a body of 60 bytes above what is always taken, that stands still; and of another meanwhile."""
    slow = asyncio.create_task(door.asking("/v1/fleet/push-object", b"x" * (SMALL + 60), headers=NODE, silent=True))
    await asyncio.sleep(0.05)
    second = await door.asking("/v1/fleet/push-object", *chunks, headers=NODE, address=address)
    return await slow, second


@pytest.mark.parametrize(
    ("limits", "address"),
    [
        pytest.param({"held": 100}, "10.0.0.2", id="of all together"),
        pytest.param({"share": 100}, "10.0.0.1", id="of one address"),
    ],
)
def test_large_bodies_are_bounded_and_freed(limits: dict[str, int], address: str) -> None:
    door = Door(idle_s=0.5, **limits)
    slow, second = asyncio.run(beside_a_slow_one(door, address, b"x" * (SMALL + 60)))
    assert (second[0], code(second), second[1]["retry-after"]) == (503, "busy", "5")
    assert code(slow) == "slow"
    assert door.ask("/v1/fleet/push-object", b"x" * (SMALL + 60), headers=NODE, address=address)[0] == 200
    assert not door.gate._held


def test_an_address_that_holds_its_share_keeps_nobody_else_out() -> None:
    door = Door(idle_s=0.5, share=100)
    assert asyncio.run(beside_a_slow_one(door, "10.0.0.2", b"x" * (SMALL + 60)))[1][0] == 200


def test_a_small_body_is_never_turned_away_for_large_ones() -> None:
    door = Door(idle_s=0.5, held=60)
    assert asyncio.run(beside_a_slow_one(door, "10.0.0.1", b"x" * SMALL))[1][0] == 200


def test_a_body_that_stands_still_is_given_up() -> None:
    door = Door(idle_s=0.1)
    reply = asyncio.run(door.asking("/api/v1/enrol", b"{", silent=True))
    assert (reply[0], code(reply)) == (408, "slow")


def test_a_body_that_drips_is_given_up_although_it_never_stands_still() -> None:
    door = Door(idle_s=10.0, slowest=1000)

    class Drip:
        def __init__(self) -> None:
            self.bytes = 0

        async def __call__(self) -> MutableMapping[str, Any]:
            self.bytes += 1
            door.time.now += 1.0
            return {"type": "http.request", "body": b"x", "more_body": True}

    drip, sent = Drip(), []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/api/v1/enrol", "headers": [], "client": ("10.0.0.1", 1)}
    asyncio.run(asyncio.wait_for(door.gate(scope, drip, send), 5))
    assert sent[0]["status"] == 408
    assert drip.bytes < 12


def test_a_caller_that_asks_too_often_is_told_when_to_come_back() -> None:
    door = Door(rate=1.0, burst=3)
    hurried = {"flwr-public-key": "a"}
    assert [door.ask("/v1/fleet/x", headers=hurried)[0] for _ in range(4)] == [200, 200, 200, 429]
    reply = door.ask("/v1/fleet/x", headers=hurried)
    assert (code(reply), reply[1]["retry-after"]) == ("rate", "5")
    assert door.ask("/v1/fleet/x", headers={"flwr-public-key": "b"})[0] == 200  # a neighbour behind the same address
    door.time.now += 1.0
    assert door.ask("/v1/fleet/x", headers=hurried)[0] == 200


def test_an_address_that_makes_up_keys_is_bounded_too() -> None:
    door = Door(rate=1.0, burst=1)
    outcomes = [door.ask("/v1/fleet/x", headers={"flwr-public-key": str(key)})[0] for key in range(30)]
    assert outcomes == [200] * 20 + [429] * 10
    assert door.ask("/v1/fleet/x", address="10.0.0.2")[0] == 200


def test_only_so_many_callers_are_remembered() -> None:
    door = Door(callers=10)
    for number in range(100):
        door.ask("/v1/fleet/x", address=f"10.0.0.{number}")
    assert len(door.gate._buckets) == 10


def test_no_websocket_is_let_in() -> None:
    door, sent = Door(), []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "websocket.connect"}

    asyncio.run(door.gate({"type": "websocket", "path": "/v1/fleet/x"}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1000}]


def test_what_is_refused_is_recorded_once() -> None:
    door = Door()
    for number in range(2):
        door.ask(f"/wp-admin/{number}")
    assert door.recorded == [("not-found", "/wp-admin/0"), ("not-found", "/wp-admin/1")]


def test_whom_flower_turns_away_is_recorded_too() -> None:
    door = Door()
    door.fleet.status = 401
    door.ask("/v1/fleet/pull-messages")
    door.fleet.status = 200
    door.ask("/v1/fleet/pull-messages")
    assert door.recorded == [("unknown-node", "/v1/fleet/pull-messages")]


@pytest.mark.parametrize("begun", [False, True])
def test_a_fault_behind_the_gate_reaches_no_server(begun: bool) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError("a secret")

    door, sent = Door(), []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    asyncio.run(Faultless(broken, door._record)({"type": "http", "path": "/x"}, None, send))
    assert [message.get("status") for message in sent] == ([200] if begun else [500, None])
    assert door.recorded == [("internal", "/x")]
    assert "a secret" not in str(sent)
