"""HTTP to one coordinator and to nobody else, over links that misbehave."""

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.proxy import Fault, Proxy
from fleet.errors import AllowanceError, BusyError, LinkError, RefusedError, TrustError, UsageError
from node import transport as module
from node.transport import Reply, Transport, checked, problem, shown_authority
from tests.authority import Authority
from tests.http_server import Answer, Request, http_server

BIG = bytes(range(256)) * 1000


def answer(request: Request) -> Answer:
    if request.path == "/echo":
        return 200, {}, request.body
    if request.path == "/moved":
        return 302, {"Location": "http://127.0.0.1:9/"}, b""
    if request.path == "/headers":
        return 200, {}, "\n".join(sorted(request.headers)).encode()
    return 200, {}, BIG


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with http_server(answer) as port:
        yield port


@contextmanager
def through(port: int, fault: Fault, **options: float) -> Iterator[tuple[Transport, Proxy]]:
    with Proxy(("127.0.0.1", port), fault) as proxy:
        transport = Transport(f"http://127.0.0.1:{proxy.port}", **options)  # type: ignore[arg-type]
        yield transport, proxy
        transport.close()


def test_a_body_goes_there_and_back_over_one_kept_connection(port: int) -> None:
    with through(port, Fault()) as (transport, proxy):
        for _ in range(5):
            assert transport.send("POST", "/echo", body=BIG).body == BIG
        assert proxy.counts.connections == 1


def test_threads_share_a_few_connections(port: int) -> None:
    with through(port, Fault(round_trip_s=0.01)) as (transport, proxy):
        threads = [threading.Thread(target=transport.send, args=("GET", "/big")) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert proxy.counts.connections <= module.PARALLEL


def test_no_compression_is_asked_for_and_no_proxy_of_the_environment_is_used(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with through(port, Fault()) as (transport, _):
        assert transport.send("GET", "/big").body == BIG


def test_a_redirection_is_not_followed(port: int) -> None:
    with through(port, Fault()) as (transport, _):
        reply = transport.send("GET", "/moved")
        assert reply.status == 302
        with pytest.raises(LinkError, match="302"):
            checked(reply, "status")


def test_a_reply_longer_than_the_limit_is_cut(port: int) -> None:
    with through(port, Fault()) as (transport, _):
        with pytest.raises(LinkError, match="longer than 1000 bytes"):
            transport.send("GET", "/big", limit=1000)
        assert transport.send("GET", "/big").body == BIG


@pytest.mark.parametrize("byte", [0, 1, 10, 17, 50, 120, 5_000, len(BIG)])
@pytest.mark.parametrize("reset", [False, True])
def test_a_reply_cut_at_any_byte_is_a_link_error_and_the_next_one_is_whole(port: int, byte: int, reset: bool) -> None:
    with through(port, Fault(truncate=byte, reset=reset)) as (transport, proxy):
        for _ in range(module.PARALLEL + 1):  # more often than there are connections: none may leak
            with pytest.raises(LinkError):
                transport.send("GET", "/big")
        proxy.fault = Fault()
        assert transport.send("GET", "/big").body == BIG


def test_a_half_open_connection_is_given_up(port: int) -> None:
    with through(port, Fault(half_open=True), silence_s=0.3) as (transport, _):
        begun = time.monotonic()
        with pytest.raises(LinkError):
            transport.send("GET", "/big")
        assert time.monotonic() - begun < 3


def test_a_server_that_drips_its_head_is_given_up(port: int) -> None:
    with through(port, Fault(drip_s=0.4), silence_s=0.5) as (transport, _):  # the whole head would take 3 s
        begun = time.monotonic()
        with pytest.raises(LinkError):
            transport.send("GET", "/big")
        assert time.monotonic() - begun < 2


def test_a_server_that_drips_its_body_is_given_up(port: int) -> None:
    with through(port, Fault(drip_s=0.05), silence_s=1.0) as (transport, _):  # 320 bytes a second; the head takes 0.5 s
        begun = time.monotonic()
        with pytest.raises(LinkError, match="too slow"):
            transport.send("GET", "/big")
        assert time.monotonic() - begun < 10


def test_a_refused_connection_is_a_link_error(port: int) -> None:
    with through(port, Fault(refuse=True)) as (transport, _), pytest.raises(LinkError):
        transport.send("GET", "/big")
    with pytest.raises(LinkError, match="refused"):
        Transport("http://127.0.0.1:1").send("GET", "/big")


def test_every_byte_is_accounted_for_and_a_spent_allowance_cuts(port: int) -> None:
    spent: list[int] = []
    transport = Transport(f"http://127.0.0.1:{port}", spend=spent.append)
    transport.send("POST", "/echo", body=BIG)
    assert sum(spent) == 2 * len(BIG) + module.OVERHEAD_BYTES

    def refuse(count: int) -> None:
        raise AllowanceError("used up")

    with pytest.raises(AllowanceError):
        Transport("http://127.0.0.1:1", spend=refuse).send("GET", "/big")  # before anything is sent


@pytest.mark.parametrize(
    ("reply", "error", "says"),
    [
        (Reply(403, {}, b'{"code": "revoked", "detail": "d1 is revoked"}'), RefusedError, "d1 is revoked"),
        (Reply(401, {}, b"<html>"), RefusedError, "refused"),
        (Reply(412, {}, b'{"code": 2004, "detail": "SuperNode"}'), RefusedError, "SuperNode"),
        (Reply(500, {}, b"[" * 5000), LinkError, "500"),
        (Reply(503, {"retry-after": "7"}, b""), BusyError, "busy"),
    ],
)
def test_a_failure_becomes_one_of_our_errors(reply: Reply, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as raised:
        checked(reply, "status")
    if isinstance(raised.value, BusyError):
        assert raised.value.retry_after_s == 7.0


def test_a_problem_is_short_whatever_the_server_sends() -> None:
    code, detail = problem(b'{"code": "%s", "detail": "%s"}' % (b"c" * 1000, b"d" * 1000))
    assert (len(code), len(detail)) == (40, 200)
    assert problem(b'["code"]') == ("", "")


@pytest.mark.parametrize("url", ["ftp://h", "http://", "h:1", "http://h/?q", "http://u@h/"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        Transport(url)


@contextmanager
def tls(context: ssl.SSLContext) -> Iterator[str]:
    with http_server(answer, context=context) as port:
        yield f"https://127.0.0.1:{port}"


def test_a_node_talks_to_the_server_that_its_authority_vouches_for(tmp_path: Path) -> None:
    ours = Authority.make("ours")
    with tls(ours.context(tmp_path)) as url:
        assert Transport(url, authority=ours.pem).send("GET", "/big").body == BIG


@pytest.mark.parametrize("authority", ["other", "system"])
def test_a_node_talks_to_nobody_else(tmp_path: Path, authority: str) -> None:
    other = Authority.make("ours")  # the same name, another key
    with tls(Authority.make("ours").context(tmp_path)) as url:
        transport = Transport(url, authority=other.pem if authority == "other" else None)
        with pytest.raises(TrustError, match="not the coordinator that this node was enrolled with"):
            transport.send("POST", "/echo", body=b"secret")


def test_a_certificate_for_another_host_is_not_enough(tmp_path: Path) -> None:
    ours = Authority.make("ours")
    with tls(ours.context(tmp_path, "127.0.0.2")) as url, pytest.raises(TrustError):
        Transport(url, authority=ours.pem).send("GET", "/big")


def test_a_pinned_authority_is_never_dropped_for_plain_http() -> None:
    with pytest.raises(UsageError, match="https"):
        Transport("http://127.0.0.1:1", authority=Authority.make("ours").pem)


def test_the_authority_of_an_invitation_is_taken_from_what_the_server_shows(tmp_path: Path) -> None:
    ours = Authority.make("ours")
    with tls(ours.context(tmp_path)) as url:
        assert shown_authority(url, ours.fingerprint).split() == ours.pem.split()
        with pytest.raises(TrustError, match="does not show"):
            shown_authority(url, Authority.make("ours").fingerprint)
    with pytest.raises(LinkError):
        shown_authority("https://127.0.0.1:1", ours.fingerprint)
