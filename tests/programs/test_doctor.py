"""``edgefleet node doctor``: everything it looks at, ill once, and what it says to do."""

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from coordinator.admin_client import AdminClient
from fleet.errors import TamperedError, TrustError
from node import doctor
from node.doctor import examine
from node.membership import Membership
from node.store import open_store
from tests.http_server import http_server
from tests.programs.program import ROOT, edgefleet, only_line
from tests.programs.test_enrol import invited, joined

PARTS = ["ledger", "releases", "disk", "learning", "coordinator"]


@dataclass
class Patient:
    """A node's folder, what is around it, and the fixture that undoes what is done to it."""

    folder: Path
    home: Path
    patch: pytest.MonkeyPatch

    def rejoin(self, **changed: str) -> None:
        """Pin another way to the coordinator, or another task."""
        with closing(open_store(self.folder / "node.db")) as store:
            membership = Membership.load(store)
            assert membership is not None
            replace(membership, **changed).save(store)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def enrolled(coordinator: object, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A well node's folder, and its task's file."""
    folder = tmp_path_factory.mktemp("doctor")
    shutil.copy(ROOT / "tests" / "coordinator" / "tiny.py", folder / "task.py")
    joined(folder / "node", invited(AdminClient(home), "patient"), f"{folder / 'task.py'}:TASK")
    return folder


@pytest.fixture
def patient(enrolled: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Patient:
    shutil.copytree(enrolled / "node", tmp_path / "node")
    shutil.copy(enrolled / "task.py", tmp_path / "task.py")
    patient = Patient(tmp_path / "node", home, monkeypatch)
    patient.rejoin(reference=f"{tmp_path / 'task.py'}:TASK")
    return patient


def edit_ledger(patient: Patient) -> None:
    with closing(open_store(patient.folder / "node.db")) as store:
        store.execute("insert into charge values (1, 'train/0', 'session', 5, '0', '0')")


def break_page(patient: Patient) -> None:
    """Damage what lies behind the first page, as bad flash does."""
    with closing(open_store(patient.folder / "node.db")) as store:
        [(page,)] = store.execute("select rootpage from sqlite_master where name = 'charge'")
        [(size,)] = store.execute("pragma page_size")
        store.execute("pragma wal_checkpoint(truncate)")
    with open(patient.folder / "node.db", "r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


def break_slot(patient: Patient) -> None:
    artifact = patient.folder / "slots" / "00000000" / "artifact.onnx"
    artifact.write_bytes(artifact.read_bytes()[:-1])


def lose_torch(patient: Patient) -> None:
    find = importlib.util.find_spec
    patient.patch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))


def lose_task(patient: Patient) -> None:
    (patient.folder.parent / "task.py").unlink()


def change_task(patient: Patient) -> None:
    path = patient.folder.parent / "task.py"
    path.write_text(path.read_text().replace('"run"', '"flying"'))


def revoke(patient: Patient) -> None:
    admin = AdminClient(patient.home)
    folder = patient.folder.parent / "revoked"
    joined(folder, invited(admin, "revoked"), f"{patient.folder.parent / 'task.py'}:TASK")
    admin.post("revocations", {"name": "revoked"})
    patient.folder = folder


ILL: dict[str, tuple[Callable[[Patient], None], str, list[str]]] = {
    "an edited ledger": (edit_ledger, "ledger", ["charge 1 does not follow charge 0", "ask the operator"]),
    "a damaged store": (break_page, "ledger", ["malformed", "ask the operator"]),
    "a broken slot": (break_slot, "releases", ["release 0 is damaged", "fetched again at the next pull"]),
    "a full disk": (
        lambda patient: patient.patch.setattr(doctor, "LEAST_FREE_BYTES", 1 << 60),
        "disk",
        ["MB are free", "make room"],
    ),
    "no torch": (lose_torch, "learning", ["torch missing", "pip install 'edgefleet[train]'"]),
    "no task": (lose_task, "learning", ["task.py is not there"]),
    "another task": (change_task, "learning", ["is not the task that this node was enrolled for"]),
    "no network": (
        lambda patient: patient.rejoin(url="http://127.0.0.1:9"),
        "coordinator",
        ["127.0.0.1:9", "is the coordinator running, and does the network reach it?"],
    ),
    "revoked": (revoke, "coordinator", ["revoked was revoked", "for good", "another --folder"]),
}


@pytest.mark.parametrize("what", ILL)
def test_what_is_ill_is_named_with_what_to_do(what: str, patient: Patient) -> None:
    harm, part, said = ILL[what]
    assert [finding.part for finding in examine(patient.folder) if finding.well] == PARTS
    harm(patient)
    findings = examine(patient.folder)
    assert [finding.part for finding in findings] == PARTS
    [ill] = [finding for finding in findings if not finding.well]
    assert ill.part == part
    assert all(words in ill.message for words in said), ill.message
    assert "\n" not in ill.message


@pytest.fixture
def years_ahead() -> Iterator[str]:
    """A coordinator of another time."""
    now = datetime.now(UTC) + timedelta(days=1000)
    with http_server(lambda _: (200, {}, json.dumps({"now": now.isoformat()}).encode())) as port:
        yield f"http://127.0.0.1:{port}"


def test_a_clock_that_no_offset_mends_is_ill(patient: Patient, years_ahead: str) -> None:
    patient.rejoin(url=years_ahead)
    [ill] = [finding for finding in examine(patient.folder) if not finding.well]
    assert ill.part == "coordinator"
    assert "more than a year apart; set the clock of this device" in ill.message


def test_a_clock_that_is_an_hour_slow_is_told_of_and_well(patient: Patient) -> None:
    class Slow(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) - timedelta(hours=1)

    patient.patch.setattr(doctor, "datetime", Slow)
    [told] = [finding for finding in examine(patient.folder) if finding.part == "coordinator"]
    assert told.well
    assert "this clock is 3600 s slow, which is corrected for" in told.message


def test_an_ill_node_ends_the_command_with_2_after_the_whole_list(patient: Patient) -> None:
    break_slot(patient)
    patient.rejoin(url="http://127.0.0.1:9")
    shown = edgefleet("node", "doctor", "--folder", str(patient.folder))
    assert [line[:3] for line in shown.stdout.splitlines()] == ["ok ", "ILL", "ok ", "ok ", "ILL"]
    assert (only_line(shown.stderr), shown.returncode) == ("2 things to mend, see above", 2)
    shown = edgefleet("node", "doctor", "--folder", str(patient.folder), "--format", "json")
    assert [(one["part"], one["well"]) for one in json.loads(shown.stdout) if not one["well"]] == [
        ("releases", False),
        ("coordinator", False),
    ]
    assert shown.returncode == 2


def test_what_a_task_prints_is_not_in_the_way_of_the_findings(patient: Patient) -> None:
    with open(patient.folder.parent / "task.py", "a") as code:
        code.write("print('loaded')")
    shown = edgefleet("node", "doctor", "--folder", str(patient.folder), "--format", "json")
    assert [one["part"] for one in json.loads(shown.stdout) if one["well"]] == PARTS
    assert shown.stderr == "loaded\n"


def test_what_belongs_to_no_node_is_not_examined(patient: Patient, tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="edgefleet node enrol"):
        examine(tmp_path)
    (patient.folder / "node.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(TamperedError, match="cannot be read as a node's store"):
        examine(patient.folder)
