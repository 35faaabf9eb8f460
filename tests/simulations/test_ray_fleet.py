"""The same apps in Flower's own simulation. Each run is a process of its own, for Flower and Ray alter theirs."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from coordinator.server_app import REPORT
from fleet import flwr_compat
from simulations import ray_fleet
from simulations.grid import InProcessGrid
from simulations.scenario import Wish, scenario
from simulations.world import World

ROOT = Path(__file__).parent.parent.parent

RUN = """
import json, os, sys, time
from pathlib import Path
from fleet.messages import Watch
from simulations.ray_fleet import play
from simulations.scenario import Wish, scenario
from simulations.world import World

def world(folder):
    folder.mkdir()
    wish.save(folder, plan.settings)
    return World(folder, plan.task, plan.settings, plan.fleet, seed=0, started=time.monotonic())

def weights(world):
    return world.coordinator.bases.master(world.coordinator.bases[3]).tolist()

wish = Wish(nodes=4, rounds=4, epsilon=float("inf"))
plan = scenario(wish)
here, there = world(Path("here")), world(Path("there"))
here.play(lambda _: None)
hours = []
play(there, 3, lambda: hours.append(there.progress.hour))
import ray
registry = there.coordinator.registry
print(json.dumps({
    "hours": hours,
    "ray": [ray.is_initialized(), os.environ["RAY_USAGE_STATS_ENABLED"]],
    "ids": sorted(registry.roster.active().values()),
    "bases": len(registry.rounds.bases()) - 1,
    "updates": registry.rounds.counted(),
    "refused": len(registry.rounds.refusals()),
    "reports": len(registry.releases.counts(1, Watch.SHADOW)),
    "weights": [weights(here), weights(there)],
}))
"""


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Three of four rounds on Ray, and all of them in one process; without noise, so that both learn the same."""
    folder = tmp_path_factory.mktemp("ray")
    few = {"EDGEFLEET_RELEASE__SHADOW_WINDOWS": "1", "EDGEFLEET_RELEASE__MARGIN": "0.9"}  # four windows promote
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **few}
    command = [sys.executable, "-c", RUN]
    shown = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert shown.returncode == 0, shown.stderr
    return folder, json.loads(shown.stdout.splitlines()[-1])


@pytest.mark.slow
def test_rounds_on_ray_count_every_update_and_learn_what_they_would_in_one_process(
    played: tuple[Path, dict[str, Any]],
) -> None:
    seen = played[1]
    assert (seen["hours"], seen["bases"], seen["updates"], seen["refused"]) == ([0, 1, 2, 3], 3, 12, 0)
    here, there = seen["weights"]
    assert there == pytest.approx(here, rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_nodes_on_ray_report_on_a_release(played: tuple[Path, dict[str, Any]]) -> None:
    assert played[1]["reports"] == 4


@pytest.mark.slow
def test_the_nodes_are_enrolled_under_the_ids_that_flower_gave(played: tuple[Path, dict[str, Any]]) -> None:
    ids = played[1]["ids"]
    assert len(set(ids)) == 4
    assert min(ids) > 10**6  # drawn by Flower; ours begin at 1000


@pytest.mark.slow
def test_ray_reports_nothing_home_and_is_shut_down(played: tuple[Path, dict[str, Any]]) -> None:
    assert played[1]["ray"] == [False, "0"]


@pytest.mark.slow
def test_a_run_begun_on_ray_goes_on_in_one_process(played: tuple[Path, dict[str, Any]]) -> None:
    command = [sys.executable, "-m", "fleet", "simulate", "--resume", "there", "--format", "json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shown = subprocess.run(command, cwd=played[0], env=environment, capture_output=True, text=True, timeout=300)
    assert shown.returncode == 0, shown.stderr
    result = json.loads(shown.stdout)
    assert (result["rounds"], result["updates"], result["nodes_promoted"]) == (4, 16, 4)


class Dripping(InProcessGrid):
    """One reply comes at a time, as from processes that are busy, and it remembers whom it asked for a report."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        app = ray_fleet.folder_app(folder, lambda _, context: names[context.node_id])
        super().__init__(dict.fromkeys(range(len(names)), app))
        self.asked: Counter[int] = Counter()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        listed = list(messages)
        self.asked.update(m.metadata.dst_node_id for m in listed if m.metadata.message_type == REPORT)
        return super().push_messages(listed)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return super().pull_messages(list(message_ids)[:1])

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return super().pull_messages(super().push_messages(messages))


@pytest.mark.slow
def test_a_node_without_a_report_is_asked_once_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_fleet, "ASK_TIMEOUT_S", 20.0)
    wish = Wish(nodes=3, rounds=2, epsilon=float("inf"))
    plan = scenario(wish)
    wish.save(tmp_path, plan.settings)
    world = World(tmp_path, plan.task, plan.settings, plan.fleet, seed=0, started=time.monotonic())
    grid = Dripping(tmp_path, sorted(world.devices))
    hours = ray_fleet.hours_app(world, 2, lambda: None, pause=lambda: None)
    for device in world.devices.values():
        device.agent.close()
    hours(grid, flwr_compat.context(1, flwr_compat.COORDINATOR_ID))
    world.coordinator.registry.close()
    assert grid.asked == {0: 2, 1: 2, 2: 2}, "a release after the first round, and too few windows for a report"
