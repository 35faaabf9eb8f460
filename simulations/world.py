"""A whole fleet in one process: each hour a round, and a window of every device's recording."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.founding import found
from coordinator.requantizer import register
from coordinator.server_app import server_app
from coordinator.warm_start import warm_start
from fleet import durable, flwr_compat
from fleet.enrolment import check_name
from fleet.events import EventLog, Record
from fleet.release import Release
from fleet.settings import Settings
from fleet.signing import canonical, sha256
from fleet.task import Recording, Task, weights_of
from node.admission import Admit, admit
from node.agent import Agent
from node.client_app import client_app
from node.identity import Identity
from node.installer import FolderFetcher
from node.promotion import Stage
from node.provisioning import provision
from node.workshop import InProcess
from simulations.clock import SimulatedClock
from simulations.grid import InProcessGrid, Link, always

FIRST_FLOWER_ID = 1000
HOUR = timedelta(hours=1)  # an hour is a round, however fleet.toml times them
PAUSE = timedelta(minutes=1)
ASK_TIMEOUT_S = 60.0


class CountingFetcher(FolderFetcher):
    """Reads the coordinator's shelf and counts the bytes that a base costs: metadata, manifest and weights."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._bytes = 0

    def taken(self) -> int:
        """Bytes since this was last asked."""
        taken, self._bytes = self._bytes, 0
        return taken

    def _fetch(self, url: str) -> Iterator[bytes]:
        counts = not any(f"/targets/{kind}/" in url for kind in ("releases", "templates", "rollout"))
        for chunk in super()._fetch(url):
            self._bytes += len(chunk) * counts
            yield chunk


@dataclass(frozen=True, slots=True)
class Device:
    """A simulated device: what it will see, its agent, and its downloads."""

    recording: Recording
    agent: Agent
    fetcher: CountingFetcher


@dataclass(slots=True)
class Progress:
    """How far a run has come, over all its sittings; ``bytes_down`` are downloads other than of releases."""

    hour: int = 0
    wall_s: float = 0.0
    bytes_down: int = 0
    first_promotion_s: float | None = None


class World:
    """One simulated fleet over one folder. Killed anywhere and opened again, it goes on."""

    def __init__(
        self,
        folder: Path,
        task: Task,
        settings: Settings,
        recordings: dict[str, Recording],
        *,
        seed: int,
        started: float,
        link: Link = always,
    ) -> None:
        """Open the run of ``folder``, or begin it; ``started`` is ``time.monotonic()`` when the command began."""
        flwr_compat.quieten()
        torch.set_num_threads(1)  # a node's steps are too small to share out
        self.folder = folder
        self.task = task
        self.settings = settings
        self.clock = SimulatedClock()
        self.progress = read_progress(folder)
        self._sitting = started - self.progress.wall_s
        self.clock.set_hour(self.progress.hour)
        self._events = EventLog(folder / "events.jsonl", self.clock)
        self.coordinator, self.repository = found(
            folder / "coordinator",
            task,
            settings.changed(round={"every": HOUR}),
            register=lambda: register(task, weights_of(task.model())).template,
            warm_start=lambda: warm_start(task, seed),
            clock=self.clock,
            record=self._events.record("coordinator"),
        )
        self._admit = once_per_artifact()
        self.devices = {
            name: self._provision(name, recording, FIRST_FLOWER_ID + index)
            for index, (name, recording) in enumerate(sorted(recordings.items()))
        }
        self._grid = InProcessGrid(
            {FIRST_FLOWER_ID + i: client_app(device.agent) for i, device in enumerate(self.devices.values())},
            link=link,
        )
        self._server = server_app(self.coordinator, pause=self._pause, timeout_s=ASK_TIMEOUT_S)

    def play(self, watch: Callable[["World"], None]) -> None:
        """Let hours pass until nothing is left to happen; ``watch`` is called after each."""
        while not self.is_over():
            self._play_hour()
            self.save()
            watch(self)

    def is_over(self) -> bool:
        """Whether all rounds are played and no rollout or probation waits for windows that are still to come."""
        registry = self.coordinator.registry
        if len(registry.rounds.all()) < self.settings.round.rounds or registry.rounds.current():
            return False
        left = [device for device in self.devices.values() if self._has_windows(device)]
        if registry.releases.running() or self.coordinator.release_is_due():
            return not left
        return not any(_on_probation(device) for device in left)

    @property
    def wall_s(self) -> float:
        """Wall seconds of all sittings so far."""
        return time.monotonic() - self._sitting

    def save(self) -> None:
        """Write down how far the run has come."""
        self.progress.wall_s = self.wall_s
        self.progress.bytes_down += sum(device.fetcher.taken() for device in self.devices.values())
        durable.write(self.folder / "progress.json", canonical(asdict(self.progress)))

    def close(self) -> None:
        """Let go of every database."""
        self.coordinator.registry.close()
        for device in self.devices.values():
            device.agent.close()

    def _play_hour(self) -> None:
        hour = self.progress.hour
        self.clock.set_hour(hour)
        self.repository.heartbeat()
        self._step_all()
        for device in self.devices.values():
            read_window(device, hour)
        self._step_all()
        self._server(self._grid, flwr_compat.context(1, flwr_compat.COORDINATOR_ID))
        self.progress.hour = hour + 1

    def _step_all(self) -> None:
        for device in self.devices.values():
            device.agent.step()

    def _pause(self) -> None:
        self._step_all()
        self.clock.pass_time(PAUSE)

    def _has_windows(self, device: Device) -> bool:
        return device.agent.shadow.next_seq() < len(device.recording.live)

    def _provision(self, name: str, recording: Recording, flower_id: int) -> Device:
        check_name(name)
        fetcher = CountingFetcher(self.repository.folder)
        agent = provision(
            self.folder / "nodes" / name,
            lambda: Identity(
                name=name,
                key=Ed25519PrivateKey.generate(),
                coordinator=self.coordinator.instruction_key,
                root=self.repository.root_bytes(),
                settings=self.settings,
                task=self.task,
            ),
            self.task,
            workshop=InProcess(fetcher),
            clock=self.clock,
            admit=self._admit,
            record=self._recorder(name),
        )
        if len(agent.buffer) == 0:
            agent.buffer.keep(recording.train)
        self.coordinator.enrol(name, agent.public_key, flower_id)
        return Device(recording, agent, fetcher)

    def _recorder(self, name: str) -> Record:
        record = self._events.record(name)

        def watch(event: str, **fields: Any) -> None:
            if event == Stage.PROBATION and fields["release"] > 0 and self.progress.first_promotion_s is None:
                self.progress.first_promotion_s = self.wall_s
            record(event, **fields)

        return watch


def once_per_artifact() -> Admit:
    """Every simulated node is this machine with this runtime: what one child process found out holds for all."""
    admitted: set[str] = set()

    def admit_once(artifact: Path, release: Release, golden: bytes, shape: tuple[int, ...]) -> None:
        question = sha256(artifact.read_bytes() + golden + release.to_bytes())
        if question not in admitted:
            admit(artifact, release, golden, shape)
            admitted.add(question)

    return admit_once


def read_window(device: Device, index: int) -> None:
    """Let the device answer its next window, then learn the truth about it. A window is never used twice."""
    live, agent = device.recording.live, device.agent
    if index >= len(live):
        return
    if agent.shadow.next_seq() == index:
        agent.answer(live.x[index])
    agent.label(index, int(live.y[index]))


def _on_probation(device: Device) -> bool:
    candidate = device.agent.stages.candidate()
    return candidate is not None and candidate[1] is Stage.PROBATION


def read_progress(folder: Path) -> Progress:
    """How far the run of ``folder`` has come."""
    try:
        return Progress(**json.loads((folder / "progress.json").read_bytes()))
    except FileNotFoundError:
        return Progress()
