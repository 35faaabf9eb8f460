"""A folder that one process works in is not another's: one line says so, and nothing in it is touched."""

import signal
from pathlib import Path

import pytest

from fleet.quantization import Template
from tests.coordinator.served import TASK, served
from tests.programs.program import Program, edgefleet, only_line
from tests.waiting import until


def test_a_coordinators_folder_is_served_by_one_process(tmp_path: Path, template: Template) -> None:
    home = tmp_path / "coordinator"
    with served(home, template):
        before = (home / "admin.json").read_bytes()
        shown = edgefleet("coordinator", "serve", str(home), "--task", TASK, "--port", "0")
        assert only_line(shown.stderr) == f"{home} is being served by another process"
        assert (shown.returncode, shown.stdout) == (2, "")
        assert (home / "admin.json").read_bytes() == before


@pytest.mark.slow
def test_a_run_is_played_by_one_process(tmp_path: Path) -> None:
    run = tmp_path / "run"
    wish = ("simulate", "--nodes", "2", "--rounds", "2", "--out", str(run))
    with Program(tmp_path, *wish) as first:
        until(lambda: not first.runs or (run / "run.json").exists())
        assert first.runs, first.said
        first.signal(signal.SIGSTOP)  # it plays as long as we look
        for second in (wish, ("simulate", "--resume", str(run))):
            shown = edgefleet(*second)
            assert only_line(shown.stderr) == f"{run} is being played by another process"
            assert (shown.returncode, shown.stdout) == (2, "")
        assert first.runs
