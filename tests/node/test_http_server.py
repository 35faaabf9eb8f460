"""The local API's HTTP: whole requests or a plain refusal, and nobody pays for what another one sends."""

import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet.errors import UsageError
from node.address import Port, parse
from node.http_connection import Limits
from node.http_message import HttpError, Request, Response, parse_head
from node.http_server import HttpServer

LIMITS = Limits(head_bytes=500, body_bytes=5000, connections=4, request_s=0.4, idle_s=5)
GET = b"GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Echo:
    """Says what it was asked; remembers what it refused; waits if it is told to."""

    def __init__(self) -> None:
        self.refused: list[int] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def answer(self, request: Request) -> Response:
        self.go_on.wait(5)
        return Response(200, f"{request.method} {request.path} {len(request.body)}".encode(), "text/plain")

    def refuse(self, error: HttpError) -> Response:
        self.refused.append(error.status)
        return Response(error.status, json.dumps({"error": str(error)}).encode(), headers=error.headers)


class Served:
    """An echo behind a real socket."""

    def __init__(self, where: str) -> None:
        self.echo = Echo()
        self.server = HttpServer(where, self.echo, LIMITS)
        self.server.start()
        self.place = parse(self.server.address)

    def connect(self) -> socket.socket:
        if isinstance(self.place, Path):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(5)
            try:
                client.connect(str(self.place))
            except OSError:
                client.close()
                raise
            return client
        return socket.create_connection((self.place.host, self.place.number), timeout=5)

    def says(self, *parts: bytes) -> bytes:
        """All that comes back on a connection of its own, which the server ends."""
        with self.connect() as client:
            for part in parts:
                client.sendall(part)
            client.shutdown(socket.SHUT_WR)
            return received(client)


def received(client: socket.socket) -> bytes:
    data = b""
    while part := client.recv(65536):
        data += part
    return data


def exchange(client: socket.socket, request: bytes = GET) -> bytes:
    client.sendall(request)
    return client.recv(65536)


@pytest.fixture(params=["tcp", "unix"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    served = Served("http://127.0.0.1:0" if request.param == "tcp" else str(tmp_path / "api.sock"))
    yield served
    served.server.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Served]:
    served = Served("http://127.0.0.1:0")
    yield served
    served.server.close()


def test_a_connection_takes_one_request_after_the_other(served: Served) -> None:
    with served.connect() as client:
        for _ in range(3):
            reply = exchange(client)
            assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
            assert reply.endswith(b"\r\n\r\nGET /a 0")


def test_requests_in_one_packet_are_answered_in_order(served: Served) -> None:
    post = b"POST /b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nxyz"
    reply = served.says(post + GET + post)
    assert [reply.count(b"POST /b 3"), reply.count(b"GET /a 0")] == [2, 1]
    assert reply.find(b"POST") < reply.find(b"GET") < reply.rfind(b"POST")


def test_a_request_may_arrive_byte_by_byte(served: Served) -> None:
    post = b"POST /b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nxyz"
    assert served.says(*(post[i : i + 1] for i in range(len(post)))).endswith(b"POST /b 3")


def test_a_client_that_waits_for_leave_to_send_its_body_gets_it(served: Served) -> None:
    with served.connect() as client:
        head = b"POST /b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        assert exchange(client, head) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert exchange(client, b"xyz").endswith(b"POST /b 3")


@pytest.mark.parametrize("line", [b"Connection: close", b"connection: Close"])
def test_a_connection_ends_when_the_client_wants_it_to(served: Served, line: bytes) -> None:
    with served.connect() as client:
        client.sendall(GET[:-2] + line + b"\r\n\r\n" + GET)
        reply = received(client)
    assert b"Connection: close" in reply
    assert reply.count(b"200 OK") == 1


def test_an_old_client_is_answered_once(served: Served) -> None:
    assert served.says(b"GET /a HTTP/1.0\r\n\r\n" + GET).count(b"200 OK") == 1


@pytest.mark.parametrize("shape", [(2,), (3, 224, 224), (3, 4000, 3000)])
def test_one_reading_always_fits_in_json_too(shape: tuple[int, ...]) -> None:
    values = math.prod(shape)
    written = len(json.dumps([-2.2250738585072014e-308] * 1000)) / 1000
    assert values * written + 10_000 < Limits.for_reading(values).body_bytes < values * written + (5 << 20)


def test_head_is_answered_without_a_body(served: Served) -> None:
    assert served.says(GET.replace(b"GET", b"HEAD")).endswith(b"\r\n\r\n")


def test_a_query_is_not_part_of_the_path(served: Served) -> None:
    assert served.says(GET.replace(b"/a", b"/a?b=c")).endswith(b"GET /a 0")


MALFORMED = [
    (b"\r\n\r\n", 400),
    (b"GET\r\n\r\n", 400),
    (b"GET /a\r\n\r\n", 400),
    (b"GET a HTTP/1.1\r\nHost: l\r\n\r\n", 400),
    (b"G T /a HTTP/1.1\r\nHost: l\r\n\r\n", 400),
    (b"GET  /a HTTP/1.1\r\nHost: l\r\n\r\n", 400),
    (b"GET /a HTTP/1.1\r\n\r\n", 400),
    (b"GET /a HTTP/1.1\r\nHost : l\r\n\r\n", 400),
    (b"GET /a HTTP/1.1\r\nHost: l\r\n folded\r\n\r\n", 400),
    (b"GET /a HTTP/1.1\r\nHost: l\r\nX : y\r\n\r\n", 400),
    (b"GET /a HTTP/1.1\r\nHost: l\r\n a: folded\r\n\r\n", 400),
    (b"GET /a HTTP/1.1\r\nHost: l\r\nno colon\r\n\r\n", 400),
    (b"GET /a HTTP/1.1\r\nHost: l\nX: y\r\n\r\n", 400),
    (b"GET /a HTTP/1.1\r\nHost: l\r\nHost: m\r\n\r\n", 400),
    (b"GET /a HTTP/1.1\r\nHost: l\r\nContent-Length: -1\r\n\r\n", 400),
    (b"GET /a HTTP/1.1\r\nHost: l\r\nContent-Length: 1e3\r\n\r\n", 400),
    (b"GET /a HTTP/1.1\r\nHost: l\r\nContent-Length: \xb2\r\n\r\n", 400),
    (b"GET /a HTTP/1.1\r\nHost: l\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    (b"GET /a HTTP/1.1\r\nHost: l\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
    (b"GET /a HTTP/1.1\r\nHost: l\r\nContent-Length: 5001\r\n\r\n", 413),
    (b"GET /a HTTP/1.1\r\nHost: l\r\nContent-Length: 999999999999\r\n\r\n", 413),
    (b"GET /" + b"a" * 600 + b" HTTP/1.1\r\nHost: l\r\n\r\n", 431),
    (b"GET /a HTTP/1.1\r\n" + b"X: y\r\n" * 200, 431),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    (b"GET /a HTTP/2.0\r\nHost: l\r\n\r\n", 505),
]


@pytest.mark.parametrize(("data", "status"), MALFORMED)
def test_a_malformed_request_is_refused_and_what_follows_is_not_read(shared: Served, data: bytes, status: int) -> None:
    shared.echo.refused.clear()
    reply = shared.says(data + GET)
    assert reply.startswith(b"HTTP/1.1 %d " % status)
    assert b"200 OK" not in reply
    assert b"Connection: close" in reply
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]
    assert shared.echo.refused == [status]


def test_a_body_beyond_the_limit_is_refused_before_it_is_there_and_the_refusal_arrives(served: Served) -> None:
    size = 3_000_000
    reply = served.says(b"POST /a HTTP/1.1\r\nHost: l\r\nContent-Length: %d\r\n\r\n" % size, bytes(size))
    assert reply.startswith(b"HTTP/1.1 413 ")


@given(st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_bytes_are_answered_or_refused_and_hurt_nobody_else(shared: Served, data: bytes) -> None:
    reply = shared.says(data + b"\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 ")
    assert shared.says(GET).endswith(b"GET /a 0")


@given(st.binary(max_size=300) | st.sampled_from(MALFORMED).map(lambda one: one[0]))
def test_a_head_is_read_or_refused(data: bytes) -> None:
    try:
        head = parse_head(data)
        length = head.length
    except HttpError:
        return
    assert length >= 0
    assert head.path.startswith("/")


def test_a_request_that_does_not_arrive_in_time_is_refused_while_others_are_answered(served: Served) -> None:
    with served.connect() as slow, served.connect() as other:
        slow.sendall(GET[:-1])
        start = time.monotonic()
        while time.monotonic() - start < LIMITS.request_s / 2:
            assert exchange(other).endswith(b"GET /a 0")
        assert received(slow).startswith(b"HTTP/1.1 408 ")


def test_dripping_does_not_buy_time(served: Served) -> None:
    with served.connect() as slow:
        start = time.monotonic()
        slow.sendall(b"POST /b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
        with pytest.raises(OSError, match=r".*"):  # noqa: PT012 - it is cut off in the middle of it
            while time.monotonic() - start < 4:
                slow.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() - start < 4


def test_a_client_that_leaves_in_the_middle_hurts_nobody(served: Served) -> None:
    for cut in range(1, len(GET), 7):
        with served.connect() as client:
            client.sendall(GET[:cut])
    assert served.says(GET).endswith(b"GET /a 0")


def test_the_connection_that_was_idle_longest_makes_room(served: Served) -> None:
    clients = [served.connect() for _ in range(LIMITS.connections)]
    for client in clients:
        exchange(client)
        time.sleep(0.02)
    with served.connect() as late:
        assert exchange(late).endswith(b"GET /a 0")
        clients[0].settimeout(LIMITS.idle_s / 2)  # sooner than it would end by itself
        assert clients[0].recv(1) == b""
        assert exchange(clients[1]).endswith(b"GET /a 0")
    for client in clients:
        client.close()


def test_when_all_are_busy_the_next_one_is_told_to_come_again(served: Served) -> None:
    served.echo.go_on.clear()
    clients = [served.connect() for _ in range(LIMITS.connections)]
    for client in clients:
        client.sendall(GET)
    time.sleep(0.2)
    with served.connect() as late:
        reply = received(late)
    assert reply.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1" in reply
    served.echo.go_on.set()
    for client in clients:
        assert client.recv(65536).endswith(b"GET /a 0")
        client.close()


def test_closing_answers_what_was_received_and_lets_go_of_the_address(served: Served) -> None:
    served.echo.go_on.clear()
    with served.connect() as client, served.connect() as idle:
        client.sendall(GET)
        time.sleep(0.1)
        threading.Timer(0.1, served.echo.go_on.set).start()
        served.server.close()
        assert received(client).endswith(b"GET /a 0")
        assert idle.recv(1) == b""
    with pytest.raises(OSError, match=r".*"):
        served.connect()
    again = Served(str(served.place))
    assert again.says(GET).endswith(b"GET /a 0")
    again.server.close()


def test_a_socket_that_a_killed_process_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    served = Served(f"unix:{path}")
    assert served.says(GET).endswith(b"GET /a 0")
    assert path.stat().st_mode & 0o777 == 0o660
    served.server.close()
    assert not path.exists()


def test_an_address_that_is_taken_is_not_taken_away(served: Served) -> None:
    with pytest.raises(UsageError):
        HttpServer(str(served.place), Echo())
    assert served.says(GET).endswith(b"GET /a 0")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("http://127.0.0.1:80", Port("127.0.0.1", 80)),
        ("http://localhost:0/", Port("127.0.0.1", 0)),
        ("http://[::1]:80", Port("::1", 80)),
        ("unix:/run/a.sock", Path("/run/a.sock")),
        ("a.sock", Path("a.sock")),
    ],
)
def test_an_address_is_a_port_or_a_path(text: str, place: Port | Path) -> None:
    assert parse(text) == place
    if isinstance(place, Port):
        assert parse(str(place)) == place


@pytest.mark.parametrize(
    "text", ["", "unix:", "https://127.0.0.1:1", "http://127.0.0.1", "http://127.0.0.1:99999", "http://127.0.0.1:²"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.1", "example.org", "[::]", ""])  # noqa: S104 - refused
def test_an_address_that_others_can_reach_is_refused(host: str) -> None:
    with pytest.raises(UsageError, match="no password"):
        parse(f"http://{host}:80")
