"""``edgefleet node enrol`` with invitations that are good, and with all those that are not."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from coordinator.admin_client import AdminClient
from fleet.enrolment import Invitation
from fleet.errors import TrustError
from node.enrolment import join
from node.status import status
from tests.programs.program import ROOT, edgefleet, only_line

TINY = (ROOT / "tests" / "coordinator" / "tiny.py").read_text()


def invited(admin: AdminClient, name: str) -> Invitation:
    return Invitation.parse(admin.post("invitations", {"name": name})["invitation"])


def joined(folder: Path, invitation: Invitation, reference: str = "") -> None:
    """Enrol in this process."""
    join(folder, invitation, reference, clock=lambda: datetime.now(UTC)).close()


def spent(good: Invitation, home: Path, folder: Path) -> str:
    joined(folder / "first", good)
    return str(good)


def expired(good: Invitation, home: Path, folder: Path) -> str:
    with closing(sqlite3.connect(home / "registry.db")) as registry:
        registry.execute("update invitation set expires = '2020-01-01 00:00:00' where name = ?", (good.name,))
        registry.commit()
    return str(good)


Spoil = Callable[[Invitation, Path, Path], str]
REFUSED: dict[str, tuple[Spoil, int, str]] = {
    "garbled": (lambda good, *_: str(good)[:-9], 2, "copy all of what"),
    "used by another": (spent, 7, "the invitation was used: ask for another"),
    "expired": (expired, 7, "the invitation expired: ask for another"),
    "a wrong secret": (lambda good, *_: str(replace(good, secret="guess")), 7, "there is no such invitation"),
    "another's key": (lambda good, *_: str(replace(good, key="0" * 64)), 6, "is not the coordinator"),
    "another's root": (
        lambda good, *_: str(replace(good, root="0" * 64)),
        6,
        "not the coordinator that the invitation",
    ),
    "nobody there": (lambda good, *_: str(replace(good, url="http://127.0.0.1:9")), 5, "127.0.0.1:9"),
    "no port": (
        lambda good, *_: str(replace(good, url="http://127.0.0.1:99999")),
        2,
        "copy all of what",
    ),
    "TLS where there is none": (lambda good, *_: str(replace(good, authority="0" * 64)), 5, "127.0.0.1"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refused_invitation_is_one_clear_line_and_the_folder_waits_for_a_good_one(
    what: str, admin: AdminClient, home: Path, tmp_path: Path
) -> None:
    spoil, code, said = REFUSED[what]
    name, folder = f"watch-{list(REFUSED).index(what)}", tmp_path / "node"
    good = invited(admin, name)
    shown = edgefleet("node", "enrol", "-", "--folder", str(folder), given=spoil(good, home, tmp_path))
    line = only_line(shown.stderr)
    assert (shown.returncode, shown.stdout) == (code, ""), line
    assert said in line
    assert folder.exists() == (code != 2), "a text that is no invitation makes nothing"
    with pytest.raises(TrustError, match="edgefleet node enrol"):
        status(folder)
    assert not (folder / "slots").exists()
    good = invited(admin, f"{name}-again") if "ask for another" in line else good
    joined(folder, good)
    assert (status(folder)["name"], status(folder)["release"]) == (good.name, 0)


@pytest.mark.parametrize(
    ("code", "said"),
    [(None, "is not there"), (TINY.replace('"run"', '"flying"'), "is not the task that this node was enrolled for")],
    ids=["nothing there", "another task"],
)
def test_a_node_that_could_not_learn_is_told_at_once_and_goes_on_with_the_right_code(
    code: str | None, said: str, admin: AdminClient, tmp_path: Path
) -> None:
    file, folder = tmp_path / "task.py", tmp_path / "node"
    if code:
        file.write_text(code)
    invitation = invited(admin, tmp_path.name)
    shown = edgefleet("node", "enrol", str(invitation), "--folder", str(folder), "--task", f"{file}:TASK")
    assert said in only_line(shown.stderr)
    assert (shown.returncode, shown.stdout) == (3, "")
    with pytest.raises(TrustError, match="edgefleet node enrol"):
        status(folder)
    file.write_text(TINY)
    joined(folder, invitation, f"{file}:TASK")
    joined(folder, invitation)
    assert status(folder)["learns"]


def test_a_node_enrols_once_and_its_folder_belongs_to_no_other(admin: AdminClient, tmp_path: Path) -> None:
    invitation, folder = str(invited(admin, "anna")), str(tmp_path / "anna")
    for _ in range(2):  # whoever missed the first answer asks again
        shown = edgefleet("node", "enrol", invitation, "--folder", folder, "--format", "json")
        assert json.loads(shown.stdout) == {"name": "anna", "release": 0, "folder": folder}, shown.stderr
    before = status(tmp_path / "anna")
    shown = edgefleet("node", "enrol", str(invited(admin, "ben")), "--folder", folder)
    assert only_line(shown.stderr) == f"{folder} is node anna; choose another --folder for ben"
    assert shown.returncode == 2
    assert status(tmp_path / "anna") == before | {"at": status(tmp_path / "anna")["at"]}
