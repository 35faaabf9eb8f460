"""How many may be connected at one time: as many as the process may open files for, and no address has all."""

import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from coordinator.api.gate import Receive, Scope, Send
from coordinator.api.listener import MAX_CONNECTIONS, Certificate, Listener, Room, room
from coordinator.certificates import SERVER, SERVER_KEY, make

MOST = 4


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def is_open(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) != b""
    except TimeoutError:
        return True
    except ConnectionError:
        return False


@pytest.mark.parametrize("files", [130, 256, 1024, 4096, 10**6])
def test_connections_leave_files_for_everything_else(files: int) -> None:
    assert 1 <= room(files) <= MAX_CONNECTIONS
    assert 2 * room(files) < files
    assert room(10**6) == MAX_CONNECTIONS


@pytest.mark.parametrize(
    ("soft", "hard", "files"),
    [
        pytest.param(100, 700, 700, id="up to the hard limit"),
        pytest.param(256, 256, 256, id="no further"),
    ],
)
def test_a_process_raises_its_limit_as_far_as_it_may(soft: int, hard: int, files: int) -> None:
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}));"
        "from coordinator.api.listener import raised; print(raised(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == [str(files), str(files)]


def test_one_address_has_a_quarter_and_loopback_all_that_is_left() -> None:
    space = Room(8)
    assert [space.enter("10.0.0.1") for _ in range(3)] == [True, True, False]
    assert [space.enter("127.0.0.1") for _ in range(7)] == [True] * 6 + [False]
    space.leave("10.0.0.1")
    assert [space.enter("10.0.0.1"), space.enter("10.0.0.2")] == [True, False]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "before TLS"])
def test_whoever_comes_when_all_is_full_is_hung_up_on_and_places_come_back(tmp_path: Path, tls: bool) -> None:
    certificate = None
    if tls:
        make(tmp_path, ["localhost"], now=datetime.now(UTC))
        certificate = Certificate(tmp_path / SERVER, tmp_path / SERVER_KEY)
    door = Listener("127.0.0.1", 0, certificate, most=MOST)
    with door.serving(silent), ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection((door.host, door.port), 1.0)) for _ in range(3 * MOST)]
        assert sum(is_open(connection) for connection in idle) == MOST
        stack.close()
        for _ in range(50):
            with suppress(OSError):
                again = socket.create_connection((door.host, door.port), 0.5)
                with again:
                    if is_open(again):
                        break
        else:
            pytest.fail("no place came back")
