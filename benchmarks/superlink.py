"""A stock SuperLink as a process, and a run on it that is played from here: what our node is tried against."""

import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import context_from_proto, fab_to_proto, run_from_proto
from flwr.proto.control_pb2 import RegisterNodeRequest, StartRunRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import HttpGrid

import coordinator

STARTING_S = 120.0
PORTS = range(20_000, 32_768)  # below those that Linux gives to connections: nothing takes one before it is listened to
FAB = Path(coordinator.__path__[0]) / "fab"


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files of a server and of the authority that vouches for it."""

    authority: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class SuperLink:
    """A running SuperLink."""

    port: int
    certificates: Certificates | None
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        """HOST:PORT, as Flower writes it."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The same as a URL."""
        return f"{'https' if self.certificates else 'http'}://{self.address}"

    @property
    def authority(self) -> str | None:
        """PEM of the authority, None without TLS."""
        return self.certificates.authority.read_text() if self.certificates else None

    def register(self, public_key: bytes) -> int:
        """Let the node with this key (PEM) take part; its number."""
        with self._control() as control:
            return int(control.RegisterNode(RegisterNodeRequest(public_key=public_key)).node_id)

    @contextmanager
    def run(self) -> Iterator[HttpGrid]:
        """Start a run of a FAB that holds no code, and play its ServerApp from here; afterwards stop it."""
        fab = build_fab_from_disk(FAB)
        with self._control() as control:
            control.StartRun(StartRunRequest(fab=fab_to_proto(Fab(hashlib.sha256(fab).hexdigest(), fab, {}))))
        grid = HttpGrid(self.address, self.certificates is None, self._authority(), token=self._token())
        task = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id = task.task_id, task.run.run_id
        TaskIdentity.node_id = context_from_proto(task.context).node_id
        grid.set_run(run_from_proto(task.run))
        heart = HeartbeatSender(make_task_heartbeat_fn_http(grid._runtime_client))
        heart.start()  # or the run is over after a minute
        try:
            yield grid
        finally:
            heart.stop()
            grid._disconnect()

    def _token(self) -> str:
        with RuntimeHttpClient.from_server_address(
            self.address, self.certificates is None, self._authority(), [RuntimeVersionHttpInterceptor("SuperExec")]
        ) as client:
            for _ in range(100):
                if token := client.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"])).token:
                    return str(token)
                time.sleep(0.1)
        raise TimeoutError("the SuperLink gave no task")

    def _control(self) -> ControlHttpClient:
        return ControlHttpClient.from_server_address(
            self.address, self.certificates is None, self._authority(), [RuntimeVersionHttpInterceptor("cli")]
        )

    def _authority(self) -> bytes | None:
        return self.certificates.authority.read_bytes() if self.certificates else None


@contextmanager
def superlink(
    folder: Path,
    certificates: Certificates | None = None,
    *,
    isolation: str = "process",
    environment: Mapping[str, str] | None = None,
) -> Iterator[SuperLink]:
    """Start ``flower-superlink`` on a free port of loopback, with node authentication if it has certificates.

    Args:
        isolation: Who runs its ServerApps: somebody else (``process``), or it (``subprocess``).
        environment: Variables for it, and for what it runs.
    """
    port = free_port()
    command = [sys.executable, "-c", "from flwr.superlink.cli.flower_superlink import flower_superlink as f; f()"]
    command += [
        "--disable-runtime-dependency-installation",
        "--isolation",
        isolation,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    if certificates:
        command += ["--ssl-ca-certfile", str(certificates.authority), "--ssl-certfile", str(certificates.certificate)]
        command += ["--ssl-keyfile", str(certificates.key), "--enable-supernode-auth"]
    else:
        command += ["--insecure"]
    with open(folder / "superlink.log", "wb") as log:
        process = subprocess.Popen(  # noqa: S603 - our own
            command,
            env={**quiet(folder), **(environment or {})},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            link = SuperLink(port, certificates, process)
            _await(link, folder / "superlink.log")
            yield link
        finally:
            with suppress(ProcessLookupError):  # asked politely it waits for every client that still keeps a connection
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def quiet(home: Path) -> dict[str, str]:
    """An environment in which Flower keeps to ``home``, finds its programs, and neither asks nor tells anybody."""
    paths = {"FLWR_HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"}
    return {**os.environ, **paths, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


def free_port() -> int:
    """A port of loopback that nobody listens to."""
    while True:
        port = random.choice(PORTS)  # noqa: S311 - no secret
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _await(link: SuperLink, log: Path) -> None:
    verify = str(link.certificates.authority) if link.certificates else False
    until = time.monotonic() + STARTING_S
    while link.process.poll() is None and time.monotonic() < until:
        try:
            if httpx.get(f"{link.url}/health", verify=verify, trust_env=False).status_code < 500:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"the SuperLink did not start: {log.read_text()[-2000:]}")
