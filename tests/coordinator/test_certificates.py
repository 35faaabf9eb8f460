"""A local authority for trials, TLS by it, and a listener that nobody can hold."""

import gc
import json
import select
import socket
import stat
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from coordinator.admin_client import AdminClient
from coordinator.api import listener
from coordinator.api.gate import Receive, Scope, Send
from coordinator.api.listener import Certificate, Listener
from coordinator.certificates import AUTHORITY, AUTHORITY_KEY, SERVER, SERVER_KEY, fingerprint, make
from fleet.enrolment import Invitation
from fleet.errors import TamperedError, UsageError
from fleet.quantization import Template
from node.transport import shown_authority
from tests.coordinator.served import served
from tests.coordinator.wearer import Wearer

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    folder = tmp_path / "certificates"
    make(folder, ["localhost", "127.0.0.1", "::1"], now=datetime.now(UTC))
    return folder


def test_the_keys_are_for_their_owner_only(made: Path) -> None:
    for name in (AUTHORITY_KEY, SERVER_KEY):
        assert stat.S_IMODE((made / name).stat().st_mode) == 0o600


def test_made_again_the_authority_stays_and_the_certificate_is_new(made: Path) -> None:
    before = {name: (made / name).read_bytes() for name in (AUTHORITY, AUTHORITY_KEY, SERVER, SERVER_KEY)}
    make(made, ["fleet.example"], now=NOW)
    after = {name: (made / name).read_bytes() for name in before}
    assert [name for name in before if before[name] == after[name]] == [AUTHORITY, AUTHORITY_KEY]
    [leaf, authority] = x509.load_pem_x509_certificates(after[SERVER])
    leaf.verify_directly_issued_by(authority)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fleet.example"]


@pytest.mark.parametrize("host", ["", "a b", "é.example", "-.", "x" * 254, "https://x", "a..b"])
def test_a_host_that_is_none_is_refused_and_nothing_is_made(tmp_path: Path, host: str) -> None:
    with pytest.raises(UsageError, match="neither a name nor an address"):
        make(tmp_path, [host], now=NOW)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_authority_is_named(made: Path) -> None:
    (made / AUTHORITY_KEY).write_bytes(b"-----")
    with pytest.raises(TamperedError, match="authority"):
        make(made, ["localhost"], now=NOW)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # asyncio's, of a TLS client that is gone
def test_an_invitation_names_the_authority_and_the_node_pins_it_over_tls(
    made: Path, tmp_path: Path, template: Template
) -> None:
    folder, files = tmp_path / "coordinator", {"certificate": made / SERVER, "key": made / SERVER_KEY}
    with served(folder, template, authority=made / AUTHORITY, **files) as running:
        assert running.url.startswith("https://127.0.0.1:")
        invitation = Invitation.parse(AdminClient(folder).post("invitations", {"name": "watch-1"})["invitation"])
        assert invitation.authority == fingerprint((made / AUTHORITY).read_bytes())
        wearer = Wearer(invitation, shown_authority(invitation.url, invitation.authority))
        assert wearer.client.standing().round is None
    gc.collect()


def test_a_certificate_that_cannot_be_used_is_named_before_anything_starts(made: Path) -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        Listener("127.0.0.1", 0, Certificate(made / SERVER, made / AUTHORITY_KEY))
    with pytest.raises(UsageError, match="cannot be used"):
        Listener("127.0.0.1", 0, Certificate(made / "nothing", made / SERVER_KEY))


# the listener


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


def test_a_taken_address_is_named() -> None:
    first = Listener("127.0.0.1", 0)
    with first.serving(hello), pytest.raises(UsageError, match="cannot be listened on"):
        Listener("127.0.0.1", first.port)


def test_whoever_dribbles_headers_is_hung_up_on_and_others_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "HEADERS_S", 0.3)
    door = Listener("127.0.0.1", 0)
    with door.serving(hello), socket.create_connection(("127.0.0.1", door.port), timeout=10) as slow:
        began, alive = time.monotonic(), True
        slow.sendall(b"GET / HTTP/1.1\r\n")
        while alive and time.monotonic() - began < 10:
            time.sleep(0.1)
            try:
                slow.sendall(b"x")
                slow.setblocking(False)
                alive = slow.recv(1) != b""
            except BlockingIOError:
                slow.setblocking(True)
            except OSError:
                alive = False
        assert not alive
        with socket.create_connection(("127.0.0.1", door.port), timeout=10) as quick:
            for _ in range(2):  # kept alive, with a pause longer than the patience with headers
                quick.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                assert b"hello" in _whole(quick)
                time.sleep(0.8)


def _whole(sock: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"hello") and (part := sock.recv(4096)):
        data += part
    return data


def test_endless_headers_are_refused() -> None:
    door = Listener("127.0.0.1", 0)
    with door.serving(hello), socket.create_connection(("127.0.0.1", door.port), timeout=10) as talker:
        talker.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises(OSError, match=r"reset|Broken pipe|hung up"):
            _talk(talker)


def _talk(talker: socket.socket) -> None:
    for _ in range(1000):
        talker.sendall(b"x: " + b"y" * 1000 + b"\r\n")
        if select.select([talker], [], [], 0)[0]:
            break
    if b" 400 " in talker.recv(4096):  # all of it may have been on its way before the refusal was
        raise OSError("hung up, with 400")


def test_the_coordinators_address_file_tells_where_it_is(tmp_path: Path, template: Template) -> None:
    with served(tmp_path / "coordinator", template, url="https://fleet.example") as running:
        told = json.loads((tmp_path / "coordinator" / "admin.json").read_text())
        assert (running.url, told["public"], told["url"]) == ("https://fleet.example",) * 2 + (running.admin_url,)
