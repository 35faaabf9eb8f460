"""``edgefleet up``: a whole fleet of processes, of which nothing is left when it ends, however it ends."""

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from tests.programs.program import ROOT, Program
from tests.waiting import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc"),
]
SCHEMA = json.loads((ROOT / "docs" / "schemas" / "up.schema.json").read_text())


def up(folder: Path) -> Program:
    return Program(folder, "up", "--nodes", "2", "--out", str(folder / "fleet"), "--until-promoted", "--format", "json")


def test_two_nodes_end_on_a_trained_release_and_leave_no_process(tmp_path: Path) -> None:
    with up(tmp_path) as program:
        until(lambda: not program.runs, seconds=240)
        assert program.ended() == 0, program.said
        assert program.is_gone()
    outcome = json.loads(program.said)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(outcome, SCHEMA)
    assert outcome.keys() == SCHEMA["properties"].keys()
    assert (outcome["nodes"], outcome["nodes_promoted"], outcome["answers_failed"]) == (2, 2, 0)
    assert outcome["release"] >= 1
    assert 0 < outcome["epsilon_max"] <= 8
    assert list(outcome["seconds"]) == ["coordinator_ready", "enrolled", "answering", "promoted"]


def starting(folder: Path) -> bool:
    return (folder / "coordinator" / "keys").exists()


def enrolling(folder: Path) -> bool:
    return len(list(folder.glob("nodes/*/node.db"))) == 2


def running(folder: Path) -> bool:
    return len(list(folder.glob("nodes/*/node.lock"))) == 2


@pytest.mark.parametrize(
    ("moment", "number"),
    [(starting, signal.SIGTERM), (enrolling, signal.SIGHUP), (enrolling, signal.SIGINT), (running, signal.SIGINT)],
)
def test_interrupted_at_any_moment_and_impatiently_it_leaves_no_process(
    tmp_path: Path, moment: Callable[[Path], bool], number: int
) -> None:
    with up(tmp_path) as program:
        until(lambda: not program.runs or moment(tmp_path / "fleet"))
        assert program.runs, program.said
        program.signal(number, group=True)
        for _ in range(3):  # a person who does not want to wait
            time.sleep(0.2)
            if program.runs:
                program.signal(number)
        assert program.ended() == 130, program.said
        assert program.said == "edgefleet: interrupted\n"
        assert program.family() == []
