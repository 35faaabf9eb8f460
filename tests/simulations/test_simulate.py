"""``edgefleet simulate`` as a person uses it: real runs on real recordings, wrong wishes, Ctrl-C and kill -9."""

import json
import math
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import dp_accounting
import numpy as np
import onnx
import pytest
import sqlalchemy

from benchmarks.kills import Witness, play
from coordinator.rollout import Phase
from fleet.errors import StoreError, TaskError, UsageError
from fleet.privacy.gaussian import MU2_UNIT
from fleet.settings import Settings
from fleet.signing import sha256
from fleet.task import Recording, Windows
from node.slots import Slots
from simulations.facts import read
from simulations.init_command import write
from simulations.measurement import Measurements
from simulations.report import page
from simulations.scenario import Wish, scenario
from simulations.shares import by_base
from simulations.simulate_command import _STORIES, _again, _check_data, _is_interrupt, _owned, _room_needed
from simulations.stories import STORIES
from simulations.world import Device, read_window

ROOT = Path(__file__).parent.parent.parent
COMMAND = [sys.executable, "-m", "fleet"]
SMALL = ["--nodes", "4", "--rounds", "4"]


def edgefleet(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)


def played(folder: Path, *flags: str) -> tuple[Path, dict[str, Any]]:
    shown = edgefleet("simulate", *flags, "--out", "run", "--format", "json", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    return folder / "run", json.loads(shown.stdout)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    return played(tmp_path_factory.mktemp("private"), *SMALL)


@pytest.fixture(scope="module")
def certain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Without noise a run is the same every time: what chance decides elsewhere is certain here."""
    return played(tmp_path_factory.mktemp("certain"), "--rounds", "6", "--epsilon", "inf")


@pytest.mark.slow
def test_the_result_has_the_fields_that_the_readme_documents(run: tuple[Path, dict[str, Any]]) -> None:
    table = (ROOT / "README.md").read_text().split("| field of")[1].split("\n\n")[0]
    documented = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert run[1].keys() == documented


@pytest.mark.slow
def test_a_trained_release_is_promoted_by_all_and_is_better_than_the_donors(
    certain: tuple[Path, dict[str, Any]],
) -> None:
    result = certain[1]
    assert result["nodes_promoted"] == result["nodes"] == 16
    assert result["first_promotion_s"] < result["wall_s"]
    assert result["new_device_accuracy"] > result["donor_accuracy"]
    assert result["float_agreement"] >= 0.995
    assert result["epsilon_max"] is None, "without noise nothing is promised"
    assert [warning.split(":")[0] for warning in result["warnings"]] == ["privacy.epsilon", "privacy.planned_releases"]


@pytest.mark.slow
def test_every_update_is_counted_and_nothing_unsigned_ever_answers(run: tuple[Path, dict[str, Any]]) -> None:
    result = run[1]
    assert (result["nodes_unsigned"], result["nodes_exposed"], result["refused"]) == (0, 0, 0)
    assert (result["rounds"], result["updates"], result["nodes"]) == (4, 16, 4)
    assert result["releases"] >= 1


@pytest.mark.slow
def test_the_ledgers_epsilon_is_that_of_dp_accounting_at_the_end_of_a_run(run: tuple[Path, dict[str, Any]]) -> None:
    folder, result = run
    spent = 0
    for store in folder.glob("nodes/*/node.db"):
        with closing(sqlite3.connect(store)) as node:
            query = "select max(total) from (select sum(mu2) as total from charge group by partition)"
            spent = max(spent, node.execute(query).fetchone()[0])
    exact = dp_accounting.get_epsilon_gaussian(1 / math.sqrt(spent / MU2_UNIT), result["delta"])
    assert result["epsilon_max"] == pytest.approx(exact, abs=1e-6)
    assert result["epsilon_max"] <= 8


@pytest.mark.slow
def test_a_window_is_evidence_once_and_labelled_after_its_answer(certain: tuple[Path, dict[str, Any]]) -> None:
    for store in certain[0].glob("nodes/*/node.db"):
        with closing(sqlite3.connect(store)) as node:
            seqs = [row[0] for row in node.execute("select seq from reading order by seq")]
            assert seqs == list(range(len(seqs)))
            assert node.execute("select count(*) from reading where x is not null").fetchone()[0] <= 1
            reports = node.execute("select report, count(*) from reading where report is not null group by report")
            assert {count for _, count in reports} <= {8, 2}


@pytest.mark.slow
def test_every_event_is_one_line_of_json(certain: tuple[Path, dict[str, Any]]) -> None:
    lines = (certain[0] / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert {"at", "who", "event"} <= set.intersection(*(set(event) for event in events))
    assert {"round-opened", "round-closed", "release", "rollout", "staged", "shadow", "probation"} <= {
        event["event"] for event in events
    }


@pytest.mark.slow
def test_a_run_leaves_a_report_that_agrees_with_its_result(run: tuple[Path, dict[str, Any]]) -> None:
    folder, result = run
    facts = read(folder)
    html = (folder / "report.html").read_text()
    serving = next(
        r for r in reversed(facts.releases) if r.phase is Phase.DONE or (r.phase is Phase.WAVE and r.wave == 3)
    )
    int8, exact = (by_base(facts.measured, precision, held_out=True) for precision in ("int8", "float32"))
    assert int8[serving.base].value == result["new_device_accuracy"]
    assert by_base(facts.measured, "int8", held_out=False)[serving.base].value == result["same_device_accuracy"]
    assert list(exact) == list(range(result["rounds"] + 1))
    assert all(abs(int8[base].value - exact[base].value) < 0.03 for base in int8)
    spent = [epsilon for row in facts.measured.spent for epsilon in (row.sessions[-1], row.report)]
    assert max(epsilon for epsilon in spent if epsilon is not None) == result["epsilon_max"]
    assert html == page(facts)


@pytest.mark.slow
def test_the_report_of_a_run_that_is_over_is_written_again(run: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = run
    before = Measurements.load(folder)
    (folder / "report.html").unlink()
    assert edgefleet("simulate", "--resume", "run", cwd=folder.parent).returncode == 0
    assert (folder / "report.html").exists()
    assert Measurements.load(folder) == before


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["text", "json"])
def test_a_run_that_is_over_is_told_again_as_at_its_end_and_nothing_of_it_changes(
    run: tuple[Path, dict[str, Any]], tmp_path: Path, format_: str
) -> None:
    folder = copytree(run[0], tmp_path / "run")
    result = json.loads((folder / "result.json").read_bytes())
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    shown = edgefleet("simulate", "--resume", "run", "--format", format_, cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    if format_ == "json":
        assert json.loads(shown.stdout) == result
    else:
        assert "smartwatch_features: 4 devices, 4 rounds" in shown.stdout
        assert f"{result['new_device_accuracy']:.1%}" in shown.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "spoil"),
    [
        pytest.param("progress.json", lambda path: path.write_text("{"), id="progress is no JSON"),
        pytest.param("progress.json", lambda path: path.write_text('{"hours": 3}'), id="progress of another kind"),
        pytest.param("progress.json", Path.unlink, id="progress is gone"),
        pytest.param("coordinator/registry.db", lambda path: path.write_bytes(b"x" * 9000), id="no database"),
        pytest.param("coordinator/registry.db", lambda path: scratched(path), id="a damaged database"),
    ],
)
def test_what_is_damaged_in_a_run_is_one_line_and_exit_code_9(
    run: tuple[Path, dict[str, Any]], tmp_path: Path, path: str, spoil: Callable[[Path], None]
) -> None:
    copytree(run[0], tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()  # else the run is over
    spoil(tmp_path / "run" / path)
    shown = edgefleet("simulate", "--resume", "run", cwd=tmp_path)
    said = [line for line in shown.stderr.splitlines() if not line.startswith("warning: ")]  # a fleet of four
    assert (shown.returncode, len(said)) == (9, 1), shown.stderr
    assert "cannot be read" in said[0]


def scratched(database: Path) -> None:
    """Every page but the first, which says what there is, is overwritten."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
        first = connection.execute("pragma page_size").fetchone()[0]
    database.write_bytes(database.read_bytes()[:first].ljust(database.stat().st_size, b"x"))


@pytest.mark.slow
def test_killed_at_random_moments_a_run_goes_on_and_loses_nothing(tmp_path: Path) -> None:
    broken = play(tmp_path / "run", 4, flags=SMALL, shortest_s=4.0, longest_s=10.0, seed=1)
    assert len(broken) >= 2, "killed once or more, and looked at once more at the end"
    assert not any(broken), broken
    assert json.loads((tmp_path / "run" / "result.json").read_bytes())["rounds"] == 4


def altered(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as store, store:
        for (guard,) in store.execute("select name from sqlite_master where type = 'trigger'").fetchall():
            store.execute(f"drop trigger {guard}")
        assert store.execute(statement).rowcount > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "statement", "said"),
    [
        pytest.param(
            "coordinator/registry.db",
            'update "update" set aggregate = null where aggregate = 1',
            "left its aggregate",
            id="an update is counted no more",
        ),
        pytest.param(
            "coordinator/registry.db",
            'update "update" set payload = (select payload from "update" order by key limit 1)',
            "is in two aggregates",
            id="a delta is counted twice",
        ),
        pytest.param(
            "coordinator/registry.db", "update release set number = -number", "release fell", id="a number falls"
        ),
        pytest.param(
            "nodes/person03-left/node.db",
            "delete from charge where seq = (select max(seq) from charge)",
            "was lost",
            id="a charge is lost",
        ),
        pytest.param(
            "nodes/person03-left/node.db",
            "update session set mu2 = mu2 * 2",
            "released",
            id="more released than charged",
        ),
    ],
)
def test_the_witness_of_the_kills_sees_what_is_broken(
    run: tuple[Path, dict[str, Any]], tmp_path: Path, path: str, statement: str, said: str
) -> None:
    folder, witness = copytree(run[0], tmp_path / "run"), Witness()
    assert witness.examine(folder) == []
    altered(folder / path, statement)
    broken = witness.examine(folder)
    assert broken
    assert any(said in one for one in broken), broken


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_a_run_says_how_to_go_on_and_nothing_is_lost(tmp_path: Path) -> None:
    command = [*COMMAND, "simulate", *SMALL, "--out", "run"]
    events, deadline = tmp_path / "run" / "events.jsonl", time.monotonic() + 120
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            while not (events.exists() and "round-closed" in events.read_text()):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            child.send_signal(signal.SIGINT)
            printed, said = child.communicate(timeout=60)
        finally:
            child.kill()
    assert child.returncode == 130
    assert "nothing is lost. Go on with: edgefleet simulate --resume run" in said + printed
    assert "Traceback" not in said + printed
    shown = edgefleet("simulate", "--resume", "run", "--format", "json", cwd=tmp_path)
    assert (shown.returncode, json.loads(shown.stdout)["updates"]) == (0, 16)


@pytest.mark.slow
def test_bytes_that_were_never_signed_are_seen_even_where_a_nodes_own_digests_agree(
    run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder = copytree(run[0], tmp_path / "run")
    node = folder / "nodes" / "person03-left" / "slots"
    slots = Slots(node)
    pointer = slots.pointer()
    assert pointer
    release, graph = slots.release(pointer.active), onnx.load_from_string(slots.artifact(pointer.active))
    graph.doc_string = "not what was signed"
    other = graph.SerializeToString()
    slots.store(replace(release, artifact=sha256(other)), other, slots.golden(pointer.active))
    (folder / "result.json").unlink()  # it is measured again
    shown = edgefleet("simulate", "--resume", "run", "--format", "json", cwd=tmp_path)
    assert json.loads(shown.stdout)["nodes_unsigned"] == 1


@pytest.mark.slow
def test_without_noise_a_seed_gives_the_same_run_again_and_another_seed_another(tmp_path: Path) -> None:
    def outcome(name: str, seed: str) -> dict[str, Any]:
        (tmp_path / name).mkdir()
        result = played(tmp_path / name, *SMALL, "--epsilon", "inf", "--seed", seed)[1]
        return {key: value for key, value in result.items() if not key.endswith("_s")}

    first, again, other = outcome("first", "7"), outcome("again", "7"), outcome("other", "8")
    assert first == again
    assert (other["seed"], other["new_device_accuracy"]) != (first["seed"], first["new_device_accuracy"])


@pytest.mark.slow
def test_the_convolutional_model_goes_through_the_whole_loop(tmp_path: Path) -> None:
    result = played(tmp_path, "--model", "cnn", "--rounds", "6", "--epsilon", "inf")[1]
    assert result["task"] == "smartwatch_cnn"
    assert result["nodes_promoted"] == result["nodes"] == 16
    assert (result["nodes_unsigned"], result["refused"]) == (0, 0)
    assert result["new_device_accuracy"] > result["donor_accuracy"]
    assert result["float_agreement"] >= 0.995


@pytest.mark.slow
@pytest.mark.parametrize("imported", ["click.core", "torch.nn", "simulations.world", "onnxscript"])
def test_ctrl_c_is_one_line_and_exit_code_130(tmp_path: Path, imported: str) -> None:
    """Interrupted when a module has just been imported, from the first ones of the command to those of the work."""
    command = [sys.executable, "-X", "importtime", "-m", "fleet", "simulate", "--out", "run"]
    child = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    assert any(line.split("|")[-1].strip() == imported for line in child.stderr)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    lines = [line for line in said.splitlines() if not line.startswith("import time:")]
    assert child.returncode == 130
    assert lines[-1] == "edgefleet: interrupted"
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        pytest.param(["--model", "lstm"], 2, "use features or cnn", id="unknown model"),
        pytest.param(["--fold", "10"], 2, "use 0 to 9", id="unknown fold"),
        pytest.param(["--epsilon", "0"], 2, "must be above 0", id="epsilon 0"),
        pytest.param(["--epsilon", "-3"], 2, "must be above 0", id="epsilon below 0"),
        pytest.param(["--epsilon", "nan"], 2, "must be above 0", id="epsilon nan"),
        pytest.param(["--rounds", "201"], 2, "planned_releases is 200", id="more rounds than planned"),
        pytest.param(["--rounds", "0"], 2, "must be 1 or more", id="no rounds"),
        pytest.param(["--nodes", "17"], 2, "has 16 devices", id="more nodes than the data has"),
        pytest.param(["--nodes", "1"], 2, "averages nothing", id="one node"),
        pytest.param(["--nodes", "-1"], 2, "averages nothing", id="fewer nodes than none"),
        pytest.param(["--nodes", str(10**12)], 2, "has 16 devices", id="far more nodes"),
        pytest.param(["--out", "full"], 2, "is not empty; choose another --out\n", id="a folder with something in it"),
        pytest.param(["--out", "/proc/run"], 2, "cannot be written", id="a folder that cannot be written"),
        pytest.param(["--out", ""], 2, "the folder's name is empty", id="a folder without a name"),
        pytest.param(["--resume", ""], 2, "the folder's name is empty", id="a run without a name"),
        pytest.param(["--resume", "full"], 2, "holds no run", id="nothing to resume"),
        pytest.param(["--resume", "full", "--seed", "1"], 2, "leave out the other flags", id="resume and a flag"),
        pytest.param(["--rounds", "x"], 2, "not a valid integer", id="no number"),
        pytest.param(["--seed", str(2**64)], 2, "not in the range", id="a seed too long"),
        pytest.param(["--seed", "-1"], 2, "not in the range", id="a seed below 0"),
        pytest.param(["--format", "xml"], 2, "not one of 'text', 'json'", id="unknown format"),
    ],
)
def test_a_wish_that_cannot_be_granted_is_one_clear_line(
    tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    shown = edgefleet("simulate", *arguments, cwd=tmp_path)
    assert shown.returncode == code
    assert said in shown.stderr
    assert len(shown.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["full"], "nothing is half written"


@pytest.mark.parametrize("command", [("simulate", "--out", "run"), ("check",)])
def test_a_fleet_toml_that_is_a_link_to_nothing_is_not_taken_for_none(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "fleet.toml").symlink_to("gone.toml")
    shown = edgefleet(*command, cwd=tmp_path)
    assert (shown.returncode, len(shown.stderr.splitlines())) == (2, 1), shown.stderr
    assert "fleet.toml here is a link to gone.toml, which is not there" in shown.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["fleet.toml"]


def test_a_folder_of_a_run_killed_before_its_first_file_was_whole_is_as_good_as_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    run = tmp_path / "run"
    with monkeypatch.context() as patched, _owned(run, fresh=True):
        patched.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            Wish().save(run, Settings())
    assert sorted(path.name for path in run.iterdir()) == [".run.json.part", "run.lock"]
    with _owned(run, fresh=True):
        Wish().save(run, Settings())
    assert Wish.saved(run)[0] == Wish()
    with (
        pytest.raises(UsageError, match=f"is not empty; choose another --out, or go on with --resume {run}"),
        _owned(run, fresh=True),
    ):
        pass


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["chekc"], "No such command 'chekc'", id="unknown command"),
        pytest.param(["node", "rnu"], "No such command 'rnu'", id="unknown command of a group"),
        pytest.param(["init", ""], "NAME is empty", id="empty argument"),
        pytest.param(["init"], "Missing argument 'NAME'. Try 'edgefleet init --help'.", id="missing argument"),
        pytest.param(["check", "--modell", "cnn"], "No such option", id="unknown flag"),
    ],
)
def test_wrong_use_is_one_line_that_says_something_once(tmp_path: Path, arguments: list[str], said: str) -> None:
    shown = edgefleet(*arguments, cwd=tmp_path)
    [line] = shown.stderr.splitlines()
    assert (shown.returncode, shown.stdout) == (2, "")
    assert line.startswith("edgefleet: ")
    assert said in line
    assert line.count("Did you mean") <= 1


@pytest.mark.parametrize(
    ("old", "new", "code", "said"),
    [
        pytest.param('file = "task.py:TASK"', 'file = "gone.py:TASK"', 3, "is not there", id="unknown task"),
        pytest.param('file = "task.py:TASK"', 'file = "task.py:JOB"', 3, "no Task named JOB", id="unknown name"),
        pytest.param("planned_releases = 200", "planned_realeses = 200", 2, "unknown setting", id="unknown key"),
        pytest.param("epsilon = 8.0", 'epsilon = "low"', 2, "not a valid float", id="wrong type"),
        pytest.param("[privacy]", "[privacy", 2, "is no TOML", id="no TOML"),
        pytest.param('mode = "example"', 'mode = "device"', 2, "not supported", id="unsupported mode"),
        pytest.param("min_updates = 8", "min_updates = 1", 2, "hides nobody", id="a mean of one"),
    ],
)
def test_wrong_settings_are_one_clear_line(tmp_path: Path, old: str, new: str, code: int, said: str) -> None:
    write(tmp_path / "digits")
    config = tmp_path / "digits" / "fleet.toml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    shown = edgefleet("simulate", "--out", "run", cwd=tmp_path / "digits")
    assert (shown.returncode, "Traceback" in shown.stderr) == (code, False)
    assert said in shown.stderr
    assert not (tmp_path / "digits" / "run").exists()


@pytest.mark.parametrize(
    ("spoiled", "said"),
    [
        pytest.param("w.x[1, ..., 0] = float('nan')", "NaN or infinite", id="NaN reading"),
        pytest.param("w = Windows(w.x[..., 1:], w.y)", "shape", id="wrong shape"),
        pytest.param("w = Windows(w.x.astype('float64'), w.y)", "dtype", id="wrong dtype"),
        pytest.param("w.y[2] = 10", "label 10", id="label out of range"),
        pytest.param("raise OSError('disk gone')", "disk gone", id="corrupt data"),
    ],
)
def test_data_that_is_not_as_declared_is_one_clear_line(tmp_path: Path, spoiled: str, said: str) -> None:
    write(tmp_path / "digits")
    task = tmp_path / "digits" / "task.py"
    task.write_text(
        task.read_text()
        + f"""

import dataclasses
from fleet.task import Windows


def _spoiled():
    devices = _honest()
    name, seen = next(iter(devices.items()))
    w = Windows(seen.train.x.copy(), seen.train.y.copy())
    {spoiled}
    return {{**devices, name: dataclasses.replace(seen, train=w)}}


_honest = TASK.devices
TASK = dataclasses.replace(TASK, devices=_spoiled)
"""
    )
    shown = edgefleet("simulate", "--out", "run", cwd=tmp_path / "digits")
    assert (shown.returncode, "Traceback" in shown.stderr) == (3, False)
    assert said in shown.stderr
    assert not (tmp_path / "digits" / "run").exists()


def test_a_budget_that_buys_only_noise_is_told_before_the_first_round(tmp_path: Path) -> None:
    command = [*COMMAND, "simulate", "--epsilon", "1e-9", "--out", "run"]
    child = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    first = [child.stderr.readline() for _ in range(3)]
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=60)
    assert first[0].startswith("warning: release.waves: 4 of 16 devices")
    assert first[1].endswith("devices show no gain at all: every release will mostly be kept back\n")
    assert first[2].startswith("warning: privacy.epsilon: 1e-09 asks for noise")


def test_a_usual_run_warns_of_nothing_and_a_task_of_ones_own_of_what_check_says(tmp_path: Path) -> None:
    assert scenario(Wish()).warnings == ()
    write(tmp_path)
    task = tmp_path / "task.py"
    task.write_text(task.read_text().replace("nn.Hardtanh()", "nn.ReLU()"))
    shown = edgefleet("check", cwd=tmp_path)
    warnings = scenario(Wish(config=str(tmp_path / "fleet.toml"))).warnings
    assert [f"warning: {warning}" for warning in warnings] == shown.stdout.splitlines()[:-1]
    assert len(warnings) == 2


@pytest.mark.parametrize("linked", [False, True], ids=["as it is", "through a link"])
def test_a_run_that_is_moved_with_its_task_goes_on(tmp_path: Path, linked: bool) -> None:
    (tmp_path / "old" / "runs" / "one").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "old" / "runs" / "one")
    folder = tmp_path / "link" if linked else tmp_path / "old" / "runs" / "one"
    Wish(config=str(tmp_path / "old" / "fleet.toml")).save(folder, Settings())
    (tmp_path / "old").rename(tmp_path / "new")
    wish, _ = Wish.saved(tmp_path / "new" / "runs" / "one")
    assert wish == Wish(config=str(tmp_path / "new" / "fleet.toml"))


def test_a_run_that_is_moved_away_from_its_task_goes_on_with_it(tmp_path: Path) -> None:
    for project in ("mine", "other"):
        (tmp_path / project / "runs" / "one").mkdir(parents=True)
        (tmp_path / project / "fleet.toml").touch()
    wish = Wish(config=str(tmp_path / "mine" / "fleet.toml"))
    wish.save(tmp_path / "mine" / "runs" / "one", Settings())
    (tmp_path / "mine" / "runs" / "one").rename(tmp_path / "other" / "runs" / "two")
    assert Wish.saved(tmp_path / "other" / "runs" / "two")[0] == wish


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        pytest.param("dict(list(seen.items())[:2])", "leaves 1 device for the fleet", id="a fleet of one"),
        pytest.param("dict(list(seen.items())[:1])", "belong to one person", id="one person"),
        pytest.param("{n: blind(r, r.train) for n, r in seen.items()}", "has live windows", id="no live windows"),
        pytest.param(
            "{**seen, 'device00': blind(seen['device00'], nothing)}", "who is held out", id="nobody to judge by"
        ),
    ],
)
def test_a_task_that_leaves_nothing_to_average_or_to_judge_by_is_refused(
    tmp_path: Path, seen: str, message: str
) -> None:
    write(tmp_path)
    with (tmp_path / "task.py").open("a") as task:
        task.write(LESS.format(seen=seen))
    with pytest.raises(TaskError, match=message):
        scenario(Wish(config=str(tmp_path / "fleet.toml")))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("EDGEFLEET_ROUND__SERVER_STEP", "flwr.serverapp.strategy:Nobody", "round.server_step: "),
        ("EDGEFLEET_TASK__FILE", "task.py:TASK", "there is no fleet.toml here"),
    ],
)
def test_a_setting_that_cannot_be_granted_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    shown = edgefleet("simulate", "--out", "run", cwd=tmp_path)
    assert (shown.returncode, len(shown.stderr.splitlines())) == (2, 1)
    assert said in shown.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_with_the_data_that_it_began_with_and_with_no_other(tmp_path: Path) -> None:
    write(tmp_path)
    plan = scenario(Wish(config=str(tmp_path / "fleet.toml")))
    run = tmp_path / "run"
    run.mkdir()
    _check_data(run, plan.data_digest())
    _check_data(run, scenario(Wish(config=str(tmp_path / "fleet.toml"))).data_digest())
    task = tmp_path / "task.py"
    task.write_text(task.read_text().replace("TRAINING_SHARE = 0.6", "TRAINING_SHARE = 0.5"))
    with pytest.raises(UsageError, match="the data are not those that"):
        _check_data(run, scenario(Wish(config=str(tmp_path / "fleet.toml"))).data_digest())


def test_ctrl_c_is_no_mistake_of_the_task_however_it_was_wrapped() -> None:
    of_torch, ours = RuntimeError("failed"), TaskError("cannot be exported")
    of_torch.__context__, of_torch.__cause__, ours.__cause__ = KeyboardInterrupt(), ValueError(), of_torch
    assert _is_interrupt(ours)
    assert not _is_interrupt(TaskError("cannot be exported"))


def test_the_help_names_every_story() -> None:
    assert set(re.findall(r"[a-z]+(?:-[a-z]+)+", _STORIES)) == STORIES.keys()


def test_a_folder_with_a_space_can_be_pasted(tmp_path: Path) -> None:
    assert shlex.split(_again(tmp_path / "a b"))[-2:] == ["--resume", str(tmp_path / "a b")]


@pytest.mark.slow
def test_a_model_that_fails_in_training_stops_the_run_and_mended_lets_it_go_on(tmp_path: Path) -> None:
    write(tmp_path)
    task = tmp_path / "task.py"
    whole = task.read_text()
    task.write_text(whole.replace("nn.Linear(24, 10))", "nn.Linear(24, 10), _Moody())") + MOODY)
    begun = edgefleet("simulate", "--nodes", "2", "--rounds", "3", "--out", "run", cwd=tmp_path)
    assert begun.returncode == 3
    assert begun.stderr.splitlines()[-1].endswith(
        "cannot learn: digits: the model fails in training: RuntimeError: too many at once"
    )
    assert begun.stderr.splitlines()[-2].endswith("go on with: edgefleet simulate --resume run")
    assert "Traceback" not in begun.stderr
    task.write_text(whole.replace("64, 24", "64, 20").replace("24, 10", "20, 10"))
    other = edgefleet("simulate", "--resume", "run", cwd=tmp_path)
    assert (other.returncode, "Traceback" in other.stderr) == (3, False)
    assert "other parameters than the one that run/coordinator began with" in other.stderr.splitlines()[-1]
    task.write_text(whole)
    mended = edgefleet("simulate", "--resume", "run", "--format", "json", cwd=tmp_path)
    assert mended.returncode == 0, mended.stderr
    assert json.loads(mended.stdout)["rounds"] == 2, "what the first cost stays spent"


MOODY = """

class _Moody(nn.Module):
    def forward(self, x):
        if self.training and len(x) > 64:  # as many as are fitted to the donor at once
            raise RuntimeError("too many at once")
        return x
"""


LESS = """
import dataclasses

nothing = Windows(np.zeros((0, 1, 8, 8), np.float32), np.zeros(0, np.int64))


def blind(recording, train):
    return Recording(recording.person, train, nothing)


def _less(devices=TASK.devices):
    seen = devices()
    return {seen}


TASK = dataclasses.replace(TASK, devices=_less)
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["check", "simulate --nodes 2 --rounds 1 --out run"])
def test_what_a_tasks_code_prints_is_no_result(tmp_path: Path, command: str) -> None:
    write(tmp_path)
    with (tmp_path / "task.py").open("a") as task:
        task.write(CHATTY)
    shown = edgefleet(*command.split(), "--format", "json", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout) is not None
    assert "devices are loaded" in shown.stderr


CHATTY = """
import dataclasses


def _chatty(devices=TASK.devices):
    print("devices are loaded")
    return devices()


TASK = dataclasses.replace(TASK, devices=_chatty)
"""


@pytest.mark.parametrize(
    "command", [("check", "--model", "cnn"), ("check", "--fold", "1"), ("simulate", "--model", "cnn")]
)
def test_nothing_of_the_built_in_task_is_chosen_in_a_folder_with_a_task(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    write(tmp_path / "digits")
    shown = edgefleet(*command, cwd=tmp_path / "digits")
    assert (shown.returncode, shown.stdout) == (2, "")
    assert "leave one out" in shown.stderr


def test_check_finds_a_server_step_that_is_none(tmp_path: Path) -> None:
    write(tmp_path / "digits")
    config = tmp_path / "digits" / "fleet.toml"
    config.write_text(config.read_text().replace("strategy:FedAvgM", "strategy:FedNone"))
    shown = edgefleet("check", "--format", "json", cwd=tmp_path / "digits")
    assert (shown.returncode, "Traceback" in shown.stderr) == (3, False)
    [finding] = json.loads(shown.stdout)
    assert (finding["level"], finding["subject"]) == ("error", "round.server_step")


def test_a_model_that_mixes_examples_is_refused_before_it_is_promised_any_privacy(tmp_path: Path) -> None:
    write(tmp_path / "digits")
    with open(tmp_path / "digits" / "task.py", "a") as task:
        task.write(
            """

import dataclasses


class _Mixing(torch.nn.Linear):
    def forward(self, x):
        flat = x.flatten(1)
        return super().forward(flat - flat.mean(0, keepdim=True))


TASK = dataclasses.replace(TASK, model=lambda: _Mixing(64, 10))
"""
        )
    shown = edgefleet("simulate", "--out", "run", cwd=tmp_path / "digits")
    assert (shown.returncode, "Traceback" in shown.stderr) == (3, False), shown.stderr
    assert "edgefleet: model: " in shown.stderr
    assert not (tmp_path / "digits" / "run").exists()


def test_a_folder_of_the_same_name_as_a_package_hijacks_nothing(tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "__init__.py").write_text("raise SystemExit('hijacked')")
    code = "import pathlib, node.admission as a; from fleet.release import Release; "
    code += "r = Release('t', 1, 1, '', '', '', '', '', 1, 1); a.admit(pathlib.Path('gone'), r, b'', (1,))"
    shown = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "does not load" in shown.stderr
    assert "hijacked" not in shown.stderr


@pytest.mark.parametrize("missing", ["sqlalchemy", "flwr", "torch"])
def test_a_missing_extra_is_named(tmp_path: Path, missing: str) -> None:
    code = f"import sys; sys.modules['{missing}'] = None; sys.argv[1:] = ['simulate']"
    code += "; from fleet.__main__ import main; main()"
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert shown.returncode == 4
    assert "pip install 'edgefleet[simulate]'" in shown.stderr


def full_file() -> None:
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


def full_sqlite() -> None:
    with closing(sqlite3.connect(":memory:")) as store:
        store.execute("pragma max_page_count = 1")
        store.execute("create table t (x)")


def full_registry() -> None:
    with sqlalchemy.create_engine("sqlite://").connect() as store:
        store.exec_driver_sql("pragma max_page_count = 1")
        store.exec_driver_sql("create table t (x)")


def full_node() -> None:
    """A node answers also where it cannot keep that it did."""
    deaf = SimpleNamespace(shadow=SimpleNamespace(next_seq=lambda: 0), answer=lambda x: None)
    windows = Windows(np.zeros((1, 2), np.float32), np.zeros(1, np.int64))
    read_window(Device(Recording("p", windows, windows), deaf, None), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("fill", [full_file, full_sqlite, full_registry, full_node])
@pytest.mark.parametrize(("begun", "flag"), [(True, "--resume"), (False, "--out")])
def test_a_full_disk_is_one_line_that_says_how_to_go_on(
    tmp_path: Path, fill: Callable[[], None], begun: bool, flag: str
) -> None:
    if begun:
        (tmp_path / "run.json").touch()
    with pytest.raises(StoreError, match=f"disk full.* {flag} {tmp_path}$"), _room_needed(tmp_path):
        fill()


def test_what_no_full_disk_is_behind_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError, match="syntax"), _room_needed(tmp_path):
        sqlite3.connect(":memory:").execute("creat")
