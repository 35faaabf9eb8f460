"""A whole fleet in one process: each hour a round, and a window of every device's recording."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.founding import found
from coordinator.server_app import server_app
from fleet import flwr_compat
from fleet.enrolment import check_name
from fleet.errors import StoreError, TaskError
from fleet.events import EventLog, Record
from fleet.settings import Settings
from fleet.task import Recording, Task
from node.agent import CANNOT_LEARN, Agent
from node.client_app import client_app
from node.identity import Identity
from node.learning import Learning
from node.promotion import FINAL, UNHEARD, Stage, StageLog
from node.provisioning import provision
from node.workshop import InProcess
from simulations.clock import START, SimulatedClock
from simulations.grid import Fate, InProcessGrid
from simulations.once import ADMIT, first_weights, registration
from simulations.progress import read_progress
from simulations.script import PLAIN, Script
from simulations.second_core import SecondCore
from simulations.shelf import CountingFetcher, Reach

FIRST_FLOWER_ID = 1000
HOUR = timedelta(hours=1)  # an hour is a round, however fleet.toml times them
PAUSE = timedelta(minutes=1)
SETTLED = FINAL | UNHEARD - {Stage.SHADOW}  # taken, refused, or refused and still counted
SETTLING = timedelta(hours=6)  # nodes look every hour; what they could not take by then needs windows
Reading = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Device:
    """A simulated device: what it sees from the hour on in which it joined, its agent, and its downloads."""

    recording: Recording
    agent: Agent
    fetcher: CountingFetcher
    joined: int = 0


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
        script: Script = PLAIN,
        core: SecondCore | None = None,
    ) -> None:
        """Open the run of ``folder``, or begin it; ``started`` is ``time.monotonic()`` when the command began.

        ``core`` knows the same task: there is learned for every other device.
        """
        flwr_compat.quieten()
        torch.set_num_threads(1)  # a node's steps are too small to share out
        self.folder = folder
        self.task = task
        self.settings = settings
        self.seed = seed
        self.clock = SimulatedClock()
        self.progress = read_progress(folder)
        self._sitting = started - self.progress.wall_s
        self._script = script
        self._core = core
        self.clock.set_to(script.moment(self.progress.hour))
        self._events = EventLog(folder / "events.jsonl", self.clock)
        self.coordinator, self.repository = found(
            folder / "coordinator",
            task,
            settings.changed(round={"every": HOUR}),
            register=lambda: (registration(task, core.proof) if core else registration(task)).template,
            warm_start=lambda: first_weights(task, seed),
            clock=self.clock,
            record=self._events.record("coordinator"),
        )
        self._recordings = dict(sorted(recordings.items()))
        self._grid = InProcessGrid({}, link=self._link)
        self.devices: dict[str, Device] = {}
        absent = script.latecomers(list(self._recordings)) - self.progress.joined.keys()
        for name in self._recordings:
            if name not in absent:
                self._provision(name)
        self._server = server_app(self.coordinator, pause=self._pause)

    def join(self, name: str) -> None:
        """Let a latecomer into the fleet, from this hour on."""
        self.progress.joined.setdefault(name, self.progress.hour)
        self._provision(name)

    def play(self, watch: Callable[["World"], None]) -> None:
        """Let hours pass until nothing is left to happen; ``watch`` is called after each.

        Raises:
            TaskError: A device cannot learn; mended, the run goes on.
        """
        while not self.is_over():
            self._play_hour()
            self.save()
            watch(self)

    def is_over(self) -> bool:
        """Whether all rounds are played, no rollout waits for windows to come, and every node took what it ended in."""
        registry = self.coordinator.registry
        if len(registry.rounds.all()) < self.settings.round.rounds or registry.rounds.current():
            return False
        if not self._script.is_over(self):
            return False
        left = [device for device in self.devices.values() if has_windows(device)]
        if registry.releases.running() or self.coordinator.delivery.is_due():
            return not left
        return not any(self._is_settling(name, device) for name, device in self.devices.items())

    @property
    def elapsed(self) -> timedelta:
        """Simulated time since the start."""
        return self.clock() - START

    @property
    def wall_s(self) -> float:
        """Wall seconds of all sittings so far."""
        return time.monotonic() - self._sitting

    def save(self) -> None:
        """Write down how far the run has come."""
        self.progress.wall_s = self.wall_s
        self.progress.save(self.folder)

    def close(self) -> None:
        """Let go of every database, here and on the second core."""
        if self._core:
            self._core.end()
        self.coordinator.registry.close()
        for device in self.devices.values():
            device.agent.close()

    def _is_settling(self, name: str, device: Device) -> bool:
        """Whether a node has yet to take what everybody serves, and can: by its windows, or by its next looks alone."""
        releases = self.coordinator.registry.releases
        since = next(state.since for _, state in reversed(releases.all()))
        if self._script.reach(name, self.elapsed) is not Reach.ALL or has_settled(
            device.agent.stages, releases.serving().number
        ):
            return False
        return has_windows(device) or self.clock() - since < SETTLING

    def _play_hour(self) -> None:
        hour = self.progress.hour
        self.clock.set_to(self._script.moment(hour))
        self.repository.heartbeat()
        self._script.before_hour(self)
        self._step_all()
        for name, device in self.devices.items():
            read_window(device, hour - device.joined, partial(self._script.reading, name))
        self._step_all()
        self._server(self._grid, flwr_compat.context(1, flwr_compat.COORDINATOR_ID))
        while self.elapsed - self._script.moment(hour) < timedelta(minutes=self._script.watched_minutes(hour)):
            self._pause()
        self.progress.hour = hour + 1
        for device in self.devices.values():
            bases, size = device.fetcher.taken()
            self.progress.bases_down += bases
            self.progress.bytes_down += size

    def _step_all(self) -> None:
        for device in self.devices.values():
            device.agent.mind()
        there = [device.agent for name, device in self.devices.items() if self._core_of(name)]
        here = [device.agent for name, device in self.devices.items() if not self._core_of(name)]
        with ThreadPoolExecutor(1) as other:  # it computes nothing: torch is for one thread
            try:
                ended = other.submit(_learn, takewhile(lambda _: self._core and self._core.lives, there))
                _learn(here)
                ended.result()
            except BaseException:  # Ctrl-C: no session is begun any more
                there.clear()
                raise

    def _core_of(self, name: str) -> SecondCore | None:
        """Where a device learns that does not learn here: every other one, as long as there is a second core."""
        return self._core if self._core and self._core.lives and list(self._recordings).index(name) % 2 else None

    def _pause(self) -> None:
        self._step_all()
        self.clock.pass_time(PAUSE)

    def _link(self, flower_id: int) -> Fate:
        return self._script.fate(list(self._recordings)[flower_id - FIRST_FLOWER_ID], self.elapsed)

    def _provision(self, name: str) -> None:
        check_name(name)
        folder, recording = self.folder / "nodes" / name, self._recordings[name]
        flower_id = FIRST_FLOWER_ID + list(self._recordings).index(name)
        fetcher = CountingFetcher(self.repository.folder, lambda: self._script.reach(name, self.elapsed))
        core = self._core_of(name)
        agent = provision(
            folder,
            lambda: Identity(
                name=name,
                secret=Ed25519PrivateKey.generate().private_bytes_raw(),
                pinned=self.coordinator.instruction_key.public_bytes_raw(),
                root=self.repository.root_bytes(),
                settings=self._script.pinned(name, self.settings),
                task=self.task,
            ),
            self.task,
            workshop=InProcess(fetcher, session=core.session if core else Learning.session),
            clock=self.clock,
            admit=ADMIT,
            record=self._recorder(name),
        )
        if len(agent.buffer) == 0:
            agent.buffer.keep(recording.train)
        self.coordinator.enrol(name, agent.public_key, flower_id)
        self._grid.connect(flower_id, client_app(self._script.participant(agent, folder)))
        self.devices[name] = Device(recording, agent, fetcher, self.progress.joined.get(name, 0))

    def _recorder(self, name: str) -> Record:
        record = self._events.record(name)

        def watch(event: str, **fields: Any) -> None:
            record(event, **fields)
            if event == CANNOT_LEARN:  # here it is the author's own machine: they mend it, and go on with --resume
                raise TaskError(f"{name} cannot learn: {fields['reason']}")
            if event == Stage.PROBATION and fields["release"] > 0 and self.progress.first_promotion_s is None:
                self.progress.first_promotion_s = self.wall_s
                self.save()  # it is told once: a kill before the end of the hour would lose it

        return watch


def _learn(agents: Iterable[Agent]) -> None:
    for agent in agents:
        agent.learn()


def has_windows(device: Device) -> bool:
    """Whether there are windows that the device has not seen."""
    return device.agent.shadow.next_seq() < len(device.recording.live)


def read_window(device: Device, index: int, sense: Callable[[Reading], Reading] = lambda x: x) -> None:
    """Let the device answer its next window, then learn the truth about it. A window is never used twice.

    ``sense`` is what the sensor makes of a window.

    Raises:
        StoreError: The answer was given but not kept, for want of room.
    """
    live, agent = device.recording.live, device.agent
    if index >= len(live):
        return
    if agent.shadow.next_seq() == index:
        agent.answer(sense(live.x[index]))
        if agent.shadow.next_seq() == index:
            raise StoreError(f"no room to keep the answer to window {index}")
    agent.label(index, int(live.y[index]))


def has_settled(stages: StageLog, serving: int) -> bool:
    """Whether a node has taken or refused the release that everybody serves, or is past it and never will."""
    stage = stages.stage(serving)
    return stage in SETTLED or (stage is None and (stages.newest() or 0) > serving)
