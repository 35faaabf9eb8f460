"""A real fleet whose processes are killed with SIGKILL at named durable steps keeps every promise."""

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.audit import Auditor
from benchmarks.fleet_kills import Point, in_turns, play, points_of

DYING = """
import sqlite3, sys
from pathlib import Path
from node.buffer import Buffer
from fleet import durable

store = sqlite3.connect(sys.argv[1] + "/some.db", isolation_level=None)
store.execute("create table if not exists t (x)")
for i in range(3):
    store.execute("begin immediate")
    store.execute("insert into t values (?)", (i,))
    store.execute("commit")
    store.execute("insert into t values (?)", (10 + i,))
    durable.write(Path(sys.argv[1], "file"), b"%d" % i)
"""


REGISTRY = "coordinator/registry.db"
PLANTED = {
    "acknowledged updates are lost": (REGISTRY, 'delete from "update" where aggregate = 1'),
    "a closed round does not count its updates": (REGISTRY, 'update "update" set aggregate = null where aggregate = 1'),
    "a master is not the step of its updates": (REGISTRY, "update base set master = (select master from base limit 1)"),
    "what is signed is not on record": (REGISTRY, "update base set payload = 'another' where number > 0"),
    "a number falls": (REGISTRY, "delete from base where number = (select max(number) from base)"),
    "a node sent another": ("nodes/node-1/node.db", "update session set payload = zeroblob(88)"),
    "a node forgets its answers": ("nodes/node-1/node.db", "delete from session"),
}


def died(folder: Path, *fate: str) -> tuple[int, list[str]]:
    """How a small program ended under a fate, and the steps that it took."""
    folder.joinpath("dying.py").write_text(DYING)
    log = folder / "steps"
    command = [sys.executable, "-m", "benchmarks.die_at", "--log", str(log), *fate, "dying", str(folder)]
    environment = {"PYTHONPATH": f"{Path(__file__).parent.parent.parent}:{folder}"}
    ended = subprocess.run(command, env=environment, check=False, cwd=folder)
    return ended.returncode, log.read_text().splitlines()


def rows(folder: Path) -> list[int]:
    with closing(sqlite3.connect(folder / "some.db")) as store:
        return [row[0] for row in store.execute("select x from t")]


@pytest.mark.parametrize(
    ("fate", "kept", "file"),
    [
        pytest.param("before:1:Flower: commit t", [], None, id="before the first transaction"),
        pytest.param("after:1:Flower: commit t", [0], None, id="after it"),
        pytest.param("before:2:Flower: commit t", [0], None, id="before what commits itself"),
        pytest.param("after:2:Flower: commit t", [0, 10], None, id="after it"),
        pytest.param("before:2:Flower: write file", [0, 10, 1, 11], b"0", id="before a file is written"),
        pytest.param("before:2:Flower: replace file", [0, 10, 1, 11], b"0", id="before it takes its name"),
        pytest.param("after:2:Flower: replace file", [0, 10, 1, 11], b"1", id="after it"),
    ],
)
def test_a_program_dies_at_the_very_step(tmp_path: Path, fate: str, kept: list[int], file: bytes | None) -> None:
    code, _ = died(tmp_path, "--at", fate)
    assert code == -9
    assert rows(tmp_path) == kept
    path = tmp_path / "file"
    assert (path.read_bytes() if path.exists() else None) == file


def test_a_program_that_need_not_die_takes_every_step(tmp_path: Path) -> None:
    code, steps = died(tmp_path)
    assert code == 0
    once = ["Flower: commit t", "Flower: commit t", "Flower: write file", "Flower: replace file"]
    assert steps == once * 3
    assert rows(tmp_path) == [0, 10, 1, 11, 2, 12]


def test_points_are_what_every_round_comes_to_in_its_order(tmp_path: Path) -> None:
    log = tmp_path / "steps"
    steps = ["founding: commit base", "open_round: commit round", "receive_update: write H"]
    steps += ["receive_update: commit node+update"] * 20 + ["settle_round: commit round", "Flower: commit once"]
    log.write_text("\n".join(steps))
    assert points_of(log, 0) == [
        Point("open_round: commit round"),
        Point("open_round: commit round", "after"),
        Point("receive_update: write H"),
        Point("receive_update: commit node+update", "before", 3),
        Point("receive_update: commit node+update", "after", 3),
    ]
    assert len(points_of(log, 2)) == 2
    assert sorted(map(str, in_turns(points_of(log, 0) * 4))) == sorted(map(str, points_of(log, 0) * 4))


@pytest.mark.slow
def test_I1_I2_I3_I5_a_fleet_whose_processes_are_killed_keeps_every_promise(tmp_path: Path) -> None:
    outcome = play(tmp_path / "fleet", nodes=3, points=3, node_points=2, kills=1, seed=1, say=print, released=False)
    assert len(outcome.kills) == 6
    assert outcome.well, (outcome.broken, outcome.failed, outcome.missed, outcome.kills)
    assert outcome.found["rounds"] >= 2
    assert outcome.answers > 0
    for number, (store, fault) in enumerate(PLANTED.values()):
        spoilt = tmp_path / str(number)
        shutil.copytree(tmp_path / "fleet", spoilt, ignore=shutil.ignore_patterns("*.sock"))
        auditor = Auditor(spoilt)
        assert auditor.look() == []
        with closing(sqlite3.connect(spoilt / store)) as altered:
            altered.execute(fault)
            altered.commit()
        assert auditor.account()[0], fault
