"""A whole fleet as plain processes on the loopback: one coordinator, and nodes that answer to replayed recordings."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any, TypeVar

import numpy as np

from coordinator.admin_client import AdminClient
from fleet import durable
from fleet.errors import FleetError, LinkError, UsageError
from fleet.messages import Watch
from fleet.task import Recording, Windows
from node.client import Client
from node.promotion import WATCH
from node.status import status

T = TypeVar("T")

TASK = "simulations.smartwatch:TASK"
STARTING_S = 60.0
ENDING_S = 15.0
LOOK_S = 0.3
LIVE_WINDOWS = {Watch.SHADOW: 24, Watch.PROBATION: 3}  # what one release needs of a node, refused or not
TRAINING_SHARE = 0.5  # the rest is the live stream: five nodes need many windows to be sure of anything
SETTINGS = """\
[task]
file = "{task}"

[round]
every = "45s"              # a release is tried before the next round takes the processors
rounds = 5
min_updates = {quorum}
deadline = "2m"

[release]
every_rounds = 1
waves = [{first_wave:.3f}, 1.0]
margin = 0.1                # a handful of nodes cannot be surer than that
shadow_windows = {shadow}
probation_windows = {probation}
patience = "5m"
"""


class Process:
    """One program of the fleet, its output in a file; it ends with ``stop``, politely or not."""

    def __init__(self, log: Path, *command: str, given: str = "") -> None:
        self._log = log
        durable.make_folder(log.parent)
        with open(log, "ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-m", "fleet", *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for us: we end them in order
            )
        if self._process.stdin:
            with self._process.stdin as stdin:
                stdin.write(given.encode())

    def check(self) -> None:
        """Raise if it ended by itself.

        Raises:
            FleetError: It did; with the last line that it said.
        """
        if (code := self._process.poll()) is not None:
            lines = self._log.read_text(errors="replace").strip().splitlines() or [f"ended with {code}"]
            raise FleetError(f"{self._log.stem}: {lines[-1]} ({self._log})")

    def wait(self) -> None:
        """Until it ends by itself, with success.

        Raises:
            FleetError: It failed, or takes too long.
        """
        try:
            if self._process.wait(STARTING_S):
                self.check()
        except subprocess.TimeoutExpired as error:
            raise FleetError(f"{self._log.stem} takes more than {STARTING_S:.0f} s; see {self._log}") from error

    def end(self) -> None:
        """Ask it to end."""
        self._process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Make it end, if it does not by itself."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(ENDING_S)
        self._process.kill()
        self._process.wait()


@dataclass(slots=True)
class Wearer:
    """The device's own program: asks its node about every reading, and tells it the truth about some."""

    name: str
    folder: Path
    address: str
    train: Windows
    live: Windows
    answers: int = 0
    failed: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Wear the watch."""
        self._thread = threading.Thread(target=self._wear, name=self.name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take it off."""
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _wear(self) -> None:
        """First the part to learn from; then of the live part, for a recording is finite, what a release on trial
        needs. In between the watch goes on asking, and nobody knows the truth.
        """
        client = Client(self.address)
        for x, y in zip(self.train.x, self.train.y, strict=True):
            self._ask(client, x, int(y))
        live = iter(zip(self.live.x, self.live.y, strict=True))
        while not self._stop.wait(LOOK_S):
            given = list(islice(live, self.wanted()))
            for x, y in given:
                self._ask(client, x, int(y))
            if not given:
                self._ask(client, self.live.x[-1], None)

    def _ask(self, client: Client, x: Any, y: int | None) -> None:
        try:
            answer = client.infer(x)
            self.answers += 1
            if y is not None:
                client.label(answer.id, y)
        except FleetError:
            self.failed += 1

    def wanted(self) -> int:
        """How many more labelled windows the release on trial here needs.

        Those that the node counts are what it has: the first ones may come before its new model is there to watch.
        """
        now = self.status()
        watch = WATCH.get(now["stage"])
        return max(0, LIVE_WINDOWS[watch] - now["labelled_windows"]) if watch else 0

    def status(self) -> dict[str, Any]:
        """How the node stands."""
        return status(self.folder)


class Fleet:
    """The processes of one fleet over one folder."""

    def __init__(self, folder: Path, recordings: dict[str, Recording]) -> None:
        self._folder = folder
        self._recordings = recordings
        self._sockets = Path(mkdtemp(prefix="edgefleet-"))  # whose path is short: a socket's has 107 bytes at most
        self._began = time.monotonic()
        self._processes: list[Process] = []
        self._enrolling: list[Process] = []
        self.seconds: dict[str, float] = {}
        self.wearers: list[Wearer] = []
        self.admin: AdminClient | None = None

    def start(self) -> Iterator[str]:
        """Start everything, saying what comes next."""
        yield "the coordinator exports, quantizes and signs release 0"
        self._start_coordinator()
        self._mark("coordinator_ready")
        yield "the nodes enrol"
        self._enrol()
        self._mark("enrolled")
        for name in self._recordings:
            self._run_node(name)
        for wearer in self.wearers:
            _until(partial(_answers, wearer.address), self.check)
            wearer.start()
        self._mark("answering")

    def check(self) -> None:
        """Raise if a process ended by itself."""
        for process in self._processes:
            process.check()

    def overview(self) -> dict[str, Any]:
        """What the coordinator says of itself."""
        assert self.admin is not None  # noqa: S101 - after ``start``
        overview: dict[str, Any] = self.admin.get("status")
        return overview

    @property
    def elapsed_s(self) -> float:
        """Wall seconds since the beginning."""
        return time.monotonic() - self._began

    def promoted(self) -> int:
        """How many nodes have committed a release that was trained."""
        assert self.admin is not None  # noqa: S101 - after ``start``
        count = committed([wearer.status() for wearer in self.wearers], self.admin.get("releases"))
        if count == len(self.wearers) and "promoted" not in self.seconds:
            self._mark("promoted")
        return count

    def stop(self) -> None:
        """End everything: those who wear the watches, the nodes, the coordinator. Nothing interrupts that."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for wearer in self.wearers:
            wearer.stop()
        nodes = self._enrolling + self._processes[1:]
        for processes in (nodes, self._processes[:1]):  # the coordinator was started first
            for process in processes:
                process.end()
            for process in processes:
                process.stop()
        rmtree(self._sockets, ignore_errors=True)

    def _start_coordinator(self) -> None:
        count = len(self._recordings)
        text = SETTINGS.format(task=TASK, quorum=max(2, count * 4 // 5), first_wave=1 / count, **LIVE_WINDOWS)
        durable.write(self._folder / "fleet.toml", text.encode())
        home = self._folder / "coordinator"
        process = Process(
            self._folder / "logs" / "coordinator.log",
            *("coordinator", "serve", str(home), "--config", str(self._folder / "fleet.toml")),
            *("--port", "0"),
        )
        self._processes.append(process)
        self.admin = _until(lambda: _reached(home), self.check)

    def _enrol(self) -> None:
        assert self.admin is not None  # noqa: S101 - after ``start``
        for name in self._recordings:
            invitation = self.admin.post("invitations", {"name": name})["invitation"]
            command = ("node", "enrol", "-", "--folder", str(self._home(name)), "--task", TASK)
            self._enrolling.append(Process(self._folder / "logs" / f"{name}-enrol.log", *command, given=invitation))
        for process in self._enrolling:
            process.wait()

    def _run_node(self, name: str) -> None:
        address = f"unix:{self._sockets / name}"
        log = self._folder / "logs" / f"{name}.log"
        self._processes.append(Process(log, "node", "run", "--folder", str(self._home(name)), "--listen", address))
        train, live = split(self._recordings[name])
        self.wearers.append(Wearer(name, self._home(name), address, train, live))

    def _home(self, name: str) -> Path:
        return self._folder / "nodes" / name

    def _mark(self, what: str) -> None:
        self.seconds[what] = round(self.elapsed_s, 2)


@contextmanager
def running(fleet: Fleet) -> Iterator[Fleet]:
    """Whatever happens, nothing is left running."""
    try:
        yield fleet
    finally:
        fleet.stop()


def committed(standing: list[dict[str, Any]], releases: list[dict[str, Any]]) -> int:
    """How many nodes ended on a release that was trained; a withdrawal has a higher number and old weights."""
    trained = {release["number"] for release in releases if release["base"] > 0 and not release["withdraws"]}
    return sum(one["release"] in trained and one["candidate"] is None for one in standing)


def split(recording: Recording) -> tuple[Windows, Windows]:
    """The part to learn from, and the live part that follows it."""
    x = np.concatenate([recording.train.x, recording.live.x])
    y = np.concatenate([recording.train.y, recording.live.y])
    at = int(len(y) * TRAINING_SHARE)
    return Windows(x[:at], y[:at]), Windows(x[at:], y[at:])


def _until(ask: Callable[[], T | None], check: Callable[[], None]) -> T:
    """What ``ask`` gives when it gives something, as long as everything runs."""
    deadline = time.monotonic() + STARTING_S
    while (found := ask()) is None:
        check()
        if time.monotonic() > deadline:
            raise LinkError(f"nothing answered within {STARTING_S:.0f} s; see the logs folder")
        time.sleep(0.05)
    return found


def _reached(home: Path) -> AdminClient | None:
    try:
        admin = AdminClient(home)
        admin.get("status")
    except (UsageError, LinkError):
        return None
    return admin


def _answers(address: str) -> bool | None:
    try:
        Client(address).close()
    except LinkError:
        return None
    return True
