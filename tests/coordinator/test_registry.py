"""The registry: acknowledged means durable; names, keys and numbers are given once."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import event

from coordinator.admission import Admitted
from coordinator.registry import Registry
from coordinator.rollout import Phase, RolloutState
from fleet.errors import TamperedError, UsageError
from fleet.messages import Report, Watch
from fleet.release import Release
from tests.coordinator.conftest import NOW, Fleet, key_of, warm_start

FULL = 2


def read(fleet: Fleet, query: str) -> list[tuple[object, ...]]:
    """What another process sees."""
    connection = sqlite3.connect(f"file:{fleet.folder / 'registry.db'}?mode=ro", uri=True)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("pragma", "value"),
    [
        pytest.param("synchronous", FULL, id="a commit waits for the disk"),
        pytest.param("journal_mode", "wal", id="readers do not wait for the writer"),
        pytest.param("foreign_keys", 1, id="no update of nobody"),
    ],
)
def test_I2_every_connection_of_the_registry_is_durable(fleet: Fleet, pragma: str, value: object) -> None:
    engine = fleet.coordinator.registry._engine
    connections = [engine.raw_connection() for _ in range(2)]
    try:
        found = [connection.cursor().execute(f"pragma {pragma}").fetchone()[0] for connection in connections]
    finally:
        for connection in connections:
            connection.close()
    assert found == [value, value]


def test_I2_an_update_is_on_record_and_its_delta_on_disk_when_it_is_acknowledged(fleet: Fleet) -> None:
    round_ = fleet.opened()
    fleet.answer(round_, "node-0")
    [(node, payload)] = read(fleet, 'select node, payload from "update"')
    assert node == "node-0"
    assert (fleet.folder / "spool" / str(payload)).stat().st_size == 4 * 15


def test_I2_a_report_is_on_record_when_it_is_acknowledged(tmp_path: Path, fleet: Fleet) -> None:
    fleet.coordinator.delivery._announce(fleet.bases[0], Phase.SHADOW)
    fleet.report("node-2", won=4, lost=1)
    assert read(fleet, "select node, won, lost from report") == [("node-2", 4, 1)]


def test_I2_an_update_whose_commit_failed_is_not_acknowledged(fleet: Fleet) -> None:
    round_ = fleet.opened()

    def fail(connection: object) -> None:
        raise OSError("disk full")

    event.listen(fleet.coordinator.registry._engine, "commit", fail)
    with pytest.raises(OSError, match="disk full"):
        fleet.answer(round_, "node-0")
    event.remove(fleet.coordinator.registry._engine, "commit", fail)
    assert fleet.coordinator.registry.rounds.answered(round_.number) == set()
    fleet.answer(round_, "node-0")
    assert fleet.coordinator.registry.rounds.answered(round_.number) == {"node-0"}


@pytest.mark.parametrize("flower_id", [4711, 2**64 - 1])
def test_a_node_enrolled_again_with_its_key_is_asked_under_its_new_id(fleet: Fleet, flower_id: int) -> None:
    before = fleet.coordinator.registry.roster.active()
    fleet.coordinator.enrol("node-0", key_of("node-0").public_key(), flower_id)
    assert fleet.coordinator.registry.roster.active() == {**before, "node-0": flower_id}


def test_the_name_of_a_node_cannot_be_taken_with_another_key(fleet: Fleet) -> None:
    with pytest.raises(TamperedError, match="another key"):
        fleet.coordinator.enrol("node-0", key_of("mallory").public_key(), 4711)


def test_I8_a_revoked_node_does_not_come_back_by_enrolling_again(fleet: Fleet) -> None:
    fleet.coordinator.registry.roster.revoke("node-0")
    fleet.coordinator.enrol("node-0", key_of("node-0").public_key(), 1000)
    assert "node-0" not in fleet.coordinator.registry.roster.active()
    assert fleet.coordinator.registry.roster.member("node-0").revoked


def ledger_of(fleet: Fleet) -> int:
    return fleet.coordinator.registry.roster.member("node-0").ledger_seq


def test_the_highest_ledger_number_of_a_node_never_falls(fleet: Fleet) -> None:
    fleet.play_round()
    fleet.play_round()
    assert ledger_of(fleet) == 20
    older = replace(fleet.fields("node-0", fleet.opened()), ledger_seq=5)  # admission would have refused it
    assert fleet.coordinator.registry.rounds.accept(Admitted(older, warm_start(), norm=1.0), "payload")
    assert ledger_of(fleet) == 20
    fleet.close()
    fleet.open()
    assert ledger_of(fleet) == 20


def test_a_report_does_not_raise_the_ledger_number_that_updates_must_reach(fleet: Fleet) -> None:
    fleet.play_round()
    report = Report("node-0", "tiny", 0, Watch.SHADOW, 10, 0, 0, ledger_seq=99, ledger_head="0" * 64)
    fleet.coordinator.registry.releases.accept(report)
    assert ledger_of(fleet) == 10


def release(number: int) -> Release:
    return Release("tiny", number, 0, "p", "t", f"artifact {number}", "g", "r", 10, 2)


def state(number: int) -> RolloutState:
    return RolloutState(number, "salt", Phase.DONE, 0, NOW)


@pytest.mark.parametrize("number", [0, 1, 3, -1])
def test_I5_a_release_that_does_not_follow_the_newest_is_refused(tmp_path: Path, number: int) -> None:
    registry = Registry(f"sqlite:///{tmp_path / 'registry.db'}")
    for known in (0, 1):
        registry.releases.announce(release(known), state(known))
    with pytest.raises(TamperedError, match="does not follow 1"):
        registry.releases.announce(release(number), state(number))
    assert [known for known, _ in registry.releases.all()] == [release(0), release(1)]
    registry.close()


def test_times_come_back_in_utc(fleet: Fleet) -> None:
    round_ = fleet.opened()
    assert fleet.coordinator.registry.rounds.current() == round_
    assert round_.deadline.utcoffset() is not None


def test_a_registry_of_another_schema_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    Registry(f"sqlite:///{path}").close()
    with closing(sqlite3.connect(path)) as store:
        assert store.execute("select version from schema").fetchall() == [(1,)]
        store.executescript("update schema set version=2; drop table invitation; pragma wal_checkpoint(truncate)")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="has schema 2, this edgefleet reads 1"):
        Registry(f"sqlite:///{path}")
    assert path.read_bytes() == before
