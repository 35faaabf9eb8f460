"""A real fleet of the toy task, as processes that can be killed and started again, with programs that use its nodes."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TypeVar

from benchmarks.toy import points
from coordinator.admin_client import AdminClient
from fleet.errors import FleetError, InputError, LinkError, UsageError
from node.client import Client

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
TASK = f"{Path(__file__).resolve().with_name('toy.py')}:TASK"
SETTINGS = f"""\
[task]
file = "{TASK}"
[privacy]
planned_releases = 1000
[round]
every = "1s"
rounds = 1000
min_updates = 3
deadline = "1m"
[release]
every_rounds = 2
waves = [0.4, 1.0]
margin = 0.3
shadow_windows = 6
probation_windows = 2
patience = "1m"
"""
STARTING_S = 120.0  # on a busy machine
BETWEEN_S = 0.25  # between two readings of a device


class Program:
    """One command of ``edgefleet`` as a process, its output in a file; may be killed and started again.

    Args:
        command: What stands after ``edgefleet``.
        log: Where its output is appended.
        is_up: Whether it does its work.
    """

    def __init__(self, log: Path, *command: str, is_up: Callable[[], bool]) -> None:
        self._log = log
        self._command = command
        self._is_up = is_up
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def start(self, *fate: str, more: tuple[str, ...] = ()) -> None:
        """Start it; with arguments of ``benchmarks.die_at``, under that. ``more`` are arguments of its own."""
        runner = ["-m", "benchmarks.die_at", *fate, "fleet"] if fate else ["-m", "fleet"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled already
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, *runner, *self._command, *more],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C is for us: we end them
            )
        self.starts += 1

    def ready(self) -> None:
        """Wait until it does its work.

        Raises:
            RuntimeError: It ended, or takes too long.
        """
        if not self.within(STARTING_S, self._is_up):
            raise RuntimeError(f"{self._log.stem} did not start: {self._log}\n{self._log.read_text()[-2000:]}")

    def within(self, seconds: float, holds: Callable[[], bool]) -> bool:
        """Whether it becomes true in time, while this runs."""
        end = time.monotonic() + seconds
        while self.runs and time.monotonic() < end:
            if holds():
                return True
            time.sleep(0.05)
        return False

    @property
    def pid(self) -> int:
        """The number of the process."""
        assert self._process  # noqa: S101 - it was started
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def was_killed(self) -> bool:
        """Whether it died of SIGKILL, and of nothing else."""
        return self._process is not None and self._process.poll() == -signal.SIGKILL

    def kill(self) -> None:
        """SIGKILL, and nothing of it is left running; a child of it ends by itself."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@dataclass(slots=True)
class Device:
    """The device's own program: asks its node without pause, tells it the truth, and counts what went wrong."""

    address: str
    node: Program
    seed: int
    answers: int = 0
    failed: list[str] = field(default_factory=list)
    _answered: int = 0  # the last start of the node that gave an answer
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Ask from now on."""
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _ask(self) -> None:
        with closing(Client(self.address)) as client:
            self._ask_on(client)

    def _ask_on(self, client: Client) -> None:
        for seed in count(self.seed, 1000):
            windows = points(100, seed)
            for x, y in zip(windows.x, windows.y, strict=True):
                if self._stop.wait(BETWEEN_S):
                    return
                starts = self.node.starts
                try:
                    answer = client.infer(x)
                except FleetError as error:
                    self._failed(error)
                    continue
                self.answers, self._answered = self.answers + 1, starts
                with suppress(InputError, LinkError):  # killed in between, it may know of no such answer
                    client.label(answer.id, int(y))

    def _failed(self, error: FleetError) -> None:
        """A node that was killed since it last answered is excused until it is back; any other is not."""
        self._stop.wait(1.0)
        if self.node.runs and self.node.starts == self._answered:
            self.failed.append(str(error))
        while not (self._stop.is_set() or _answers(self.address)):
            self._stop.wait(0.1)


class ToyFleet:
    """A coordinator and nodes over one folder: ``coordinator/`` and ``nodes/NAME/`` in it."""

    def __init__(self, folder: Path, nodes: int, settings: str = SETTINGS) -> None:
        self.folder = folder
        self.names = [f"node-{i}" for i in range(1, nodes + 1)]
        self.home = folder / "coordinator"
        self.home.mkdir(parents=True)
        self.home.joinpath("fleet.toml").write_text(settings)
        command = ("coordinator", "serve", str(self.home), "--port", str(free_port()))
        self.coordinator = Program(folder / "coordinator.log", *command, is_up=lambda: self.admin() is not None)
        self.nodes = {name: self._node(name) for name in self.names}
        self.devices = [
            Device(self.address(name), node, seed) for seed, (name, node) in enumerate(self.nodes.items(), 1)
        ]

    def found(self, *fate: str) -> None:
        """Start the coordinator and enrol everybody."""
        self.coordinator.start(*fate)
        self.coordinator.ready()
        admin = self.admin()
        assert admin  # noqa: S101 - it is ready
        for name in self.names:
            invitation = admin.post("invitations", {"name": name})["invitation"]
            command = [sys.executable, "-m", "fleet", "node", "enrol", "-", "--task", TASK]
            command += ["--folder", str(self.folder / "nodes" / name)]
            subprocess.run(command, input=invitation.encode(), check=True, capture_output=True, cwd=ROOT)  # noqa: S603

    def settle_in(self) -> None:
        """Wait until every node answers, and let the devices ask."""
        for node in self.nodes.values():
            node.ready()
        for device in self.devices:
            device.start()

    def admin(self) -> AdminClient | None:
        """The running coordinator, if it answers."""
        try:
            admin = AdminClient(self.home)
            admin.get("status")
        except (UsageError, LinkError):
            return None
        return admin

    def address(self, name: str) -> str:
        """Where a node answers."""
        return f"unix:{self.folder / 'nodes' / name / 'api.sock'}"

    def stop(self) -> None:
        """Nothing is left running."""
        for device in self.devices:
            device.stop()
        for program in (*self.nodes.values(), self.coordinator):
            program.kill()

    def _node(self, name: str) -> Program:
        address, folder = self.address(name), self.folder / "nodes" / name
        command = ("node", "run", "--folder", str(folder), "--listen", address)
        return Program(self.folder / f"{name}.log", *command, is_up=lambda: _answers(address))


def _answers(address: str) -> bool:
    try:
        Client(address).close()
    except LinkError:
        return False
    return True


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port
