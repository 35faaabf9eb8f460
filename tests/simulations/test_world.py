"""A simulated fleet over a folder."""

from pathlib import Path

import pytest

from fleet.errors import UsageError
from fleet.events import EventLog
from node.promotion import Stage, StageLog
from node.store import open_store
from simulations.clock import SimulatedClock
from simulations.progress import read_progress
from simulations.world import World, has_settled

TAKEN = [Stage.STAGED, Stage.ADMITTED, Stage.SHADOW, Stage.PROBATION, Stage.COMMITTED]


def test_a_world_makes_no_folder_for_a_name_that_leads_elsewhere(tmp_path: Path) -> None:
    world = object.__new__(World)
    world.folder = tmp_path / "run"
    with pytest.raises(UsageError, match="letter or digit first"):
        world._provision("../../x")
    assert list(tmp_path.iterdir()) == []


def test_the_first_promotion_is_on_the_disk_before_its_hour_is_over(tmp_path: Path) -> None:
    world = object.__new__(World)
    world.folder, world.progress, world.devices, world._sitting = tmp_path, read_progress(tmp_path), {}, 0.0
    world._events = EventLog(tmp_path / "events.jsonl", SimulatedClock())
    record = world._recorder("d0")
    record(Stage.PROBATION, release=0)
    assert read_progress(tmp_path).first_promotion_s is None, "release 0 is not trained"
    record(Stage.PROBATION, release=1)
    first = read_progress(tmp_path).first_promotion_s
    assert first is not None
    record(Stage.PROBATION, release=2)
    assert read_progress(tmp_path).first_promotion_s == world.progress.first_promotion_s == first


@pytest.mark.parametrize(
    ("moves", "serving", "settled"),
    [
        pytest.param({0: TAKEN}, 0, True, id="serves it"),
        pytest.param({0: TAKEN}, 1, False, id="has not seen it yet"),
        pytest.param({0: TAKEN, 2: TAKEN[:4]}, 3, False, id="on probation with what it takes back"),
        pytest.param({0: TAKEN, 1: TAKEN[:1]}, 1, False, id="staged"),
        pytest.param({0: TAKEN, 1: TAKEN[:4]}, 1, False, id="on probation with it"),
        pytest.param({0: TAKEN, 1: [*TAKEN[:3], Stage.REJECTED]}, 1, True, id="refused it"),
        pytest.param({0: TAKEN, 1: [*TAKEN[:4], Stage.ROLLED_BACK]}, 1, True, id="went back from it"),
        pytest.param({0: TAKEN, 1: [*TAKEN[:3], Stage.MUTED]}, 1, True, id="refused it and counts on"),
        pytest.param({0: TAKEN, 1: TAKEN[:3]}, 1, False, id="in shadow"),
        pytest.param({0: TAKEN, 1: TAKEN[:3]}, 0, True, id="watches one that was kept back"),
        pytest.param({0: TAKEN, 2: TAKEN[:3]}, 1, True, id="is past it: it was away"),
    ],
)
def test_a_node_has_settled_when_it_took_or_refused_what_everybody_serves(
    tmp_path: Path, moves: dict[int, list[Stage]], serving: int, settled: bool
) -> None:
    store = open_store(tmp_path / "node.db")
    log = StageLog(store)
    for release, stages in moves.items():
        for stage in stages:
            log.append(release, stage, "")
    assert has_settled(log, serving) is settled
    store.close()
