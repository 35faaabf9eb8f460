"""The operator's commands, against a served coordinator."""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from coordinator.coordinator_command import coordinator
from coordinator.release_command import release
from coordinator.rollout_command import rollout
from coordinator.round_command import round_
from fleet.enrolment import Invitation
from fleet.errors import LinkError, RefusedError, UsageError
from fleet.quantization import Template
from tests.coordinator.served import served
from tests.coordinator.wearer import Wearer

app = typer.Typer()
for name, group in {"coordinator": coordinator, "round": round_, "release": release, "rollout": rollout}.items():
    app.add_typer(group, name=name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, template: Template) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("commands") / "coordinator"
    with served(folder, template):
        yield folder


def run(folder: Path, *command: str) -> str:
    result = CliRunner().invoke(app, [*command, "--folder", str(folder)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_story_of_an_operator(folder: Path) -> None:
    assert "no node is enrolled" in run(folder, "coordinator", "nodes")
    assert "no round was opened" in run(folder, "round", "list")
    for name in ("watch-1", "watch-2"):
        line = run(folder, "coordinator", "invite", name)
        assert line.count("\n") == 1
        Wearer(Invitation.parse(line))
    started = json.loads(run(folder, "round", "list", "--format", "json"))
    if not started:  # the timer may have been quicker: two nodes are enough for a round
        assert "round 1 is open" in run(folder, "round", "start")
    [listed] = json.loads(run(folder, "round", "list", "--format", "json"))
    assert (listed["number"], listed["state"], listed["quorum"]) == (1, "open", 2)
    shown = run(folder, "round", "list").splitlines()
    assert len(shown) == 2
    assert f"{datetime.fromisoformat(listed['opened']).astimezone():%H:%M:%S} " in shown[1]
    with pytest.raises(RefusedError, match="round 1 is open"):
        run(folder, "round", "start")
    assert "watch-2 is out of the fleet" in run(folder, "coordinator", "revoke", "watch-2")
    nodes = json.loads(run(folder, "coordinator", "nodes", "--format", "json"))
    assert [(node["name"], node["state"]) for node in nodes] == [("watch-1", "offline"), ("watch-2", "revoked")]
    assert "watch-1" in run(folder, "coordinator", "nodes")
    status = json.loads(run(folder, "coordinator", "status", "--format", "json"))
    assert (status["nodes"]["enrolled"], status["rounds"]["open"]["number"]) == (1, 1)
    assert "nodes: enrolled 1" in run(folder, "coordinator", "status")


def test_releases_are_listed_and_shown(folder: Path) -> None:
    [listed] = json.loads(run(folder, "release", "list", "--format", "json"))
    assert (listed["number"], listed["phase"]) == (0, "done")
    assert "done" in run(folder, "release", "list")
    shown = json.loads(run(folder, "release", "show", "0", "--format", "json"))
    assert len(shown["artifact"]) == 64
    assert "runtime:" in run(folder, "release", "show", "0")
    with pytest.raises(RefusedError, match="no release 7"):
        run(folder, "release", "show", "7")


def test_a_rollout_that_is_not_running_can_neither_be_held_nor_taken_back(folder: Path) -> None:
    assert json.loads(run(folder, "rollout", "status", "--format", "json"))["phase"] == "done"
    for command in ("pause", "resume"):
        with pytest.raises(RefusedError, match="no rollout is running"):
            run(folder, "rollout", command)
    with pytest.raises(RefusedError, match="nothing to go back to"):
        run(folder, "rollout", "withdraw")


def test_a_folder_without_a_coordinator_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="serve it first: edgefleet coordinator serve"):
        run(tmp_path, "coordinator", "status")
    (tmp_path / "admin.json").write_text('{"url": "http://127.0.0.1:9", "token": "x"}')
    with pytest.raises(LinkError, match="is it running"):
        run(tmp_path, "coordinator", "status")
    (tmp_path / "admin.json").write_text("[]")
    with pytest.raises(UsageError, match="damaged"):
        run(tmp_path, "coordinator", "status")


def test_certificates_say_how_to_serve_with_them(tmp_path: Path) -> None:
    shown = run(tmp_path, "coordinator", "certificates", "localhost", "10.0.0.7")
    assert f"--certificate {tmp_path / 'certificates' / 'server.pem'}" in shown
    assert (tmp_path / "certificates" / "authority.pem").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param([], "is not there", id="no settings"),
        pytest.param(["--task", "nothing.here:TASK"], "nothing.here", id="no task"),
        pytest.param(["--task", "x.y:Z", "--certificate", "a.pem"], "go together", id="half of TLS"),
    ],
)
def test_what_cannot_be_served_is_named_and_nothing_is_made(tmp_path: Path, flags: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["coordinator", "serve", str(tmp_path / "new"), *flags])
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)
    assert not (tmp_path / "new").exists()
