"""``edgefleet init``."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from coordinator.requantizer import register
from coordinator.warm_start import warm_start
from fleet import settings, task
from fleet.check import check
from fleet.errors import UsageError
from fleet.output import Format
from simulations.init_command import init, write
from simulations.once import answers


def test_a_new_folder_has_a_task_settings_and_the_next_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    init("digits")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits"]
    assert sorted(path.name for path in (tmp_path / "digits").iterdir()) == ["README.md", "fleet.toml", "task.py"]
    steps = [line.strip() for line in capsys.readouterr().out.splitlines()[1:]]
    assert steps == ["cd digits", "edgefleet check", "edgefleet simulate"]


def test_as_json_it_names_the_folder_and_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    init("digits", Format.JSON)
    assert json.loads(capsys.readouterr().out) == {"folder": "digits", "files": ["README.md", "fleet.toml", "task.py"]}


def test_the_task_it_writes_works_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "mine")
    chosen = settings.load(tmp_path / "mine" / "fleet.toml", environment={})
    digits = task.load(chosen.task.file, tmp_path / "mine")
    assert len(digits.devices()) == 12
    assert check(digits, chosen, lambda task, weights: register(task, weights).warnings, answer=answers) == []


def test_the_task_it_writes_learns(tmp_path: Path) -> None:
    write(tmp_path / "mine")
    digits = task.load("task.py:TASK", tmp_path / "mine")
    model = digits.model()
    task.set_weights(model, warm_start(digits, seed=0))
    live = [seen.live for seen in digits.devices().values()]
    with torch.no_grad():
        right = [model(torch.from_numpy(part.x)).argmax(1).numpy() == part.y for part in live]
    assert np.concatenate(right).mean() > 0.8


@pytest.mark.slow
def test_the_fleet_it_writes_ends_on_a_release_that_it_trained(tmp_path: Path) -> None:
    """Without noise, so that every run is the same."""
    write(tmp_path / "mine")
    command = [sys.executable, "-m", "fleet", "simulate", "--epsilon", "inf", "--format", "json"]
    shown = subprocess.run(command, cwd=tmp_path / "mine", check=True, capture_output=True)
    result = json.loads(shown.stdout)
    assert result["nodes_promoted"] == result["nodes"] == 11
    assert result["new_device_accuracy"] > result["donor_accuracy"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert (tmp_path / "empty" / "task.py").is_file()


def test_what_is_already_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    for taken in (tmp_path, tmp_path / "notes"):
        with pytest.raises(UsageError, match="already there"):
            write(taken)
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_a_folder_without_a_parent_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^cannot write .*No such file") as refusal:
        write(tmp_path / "no" / "where")
    assert "\n" not in str(refusal.value)


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path, **_: object) -> None:
        target.mkdir()
        (target / "task.py").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(UsageError, match="No space left"):
        write(tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []
