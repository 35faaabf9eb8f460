"""Rounds: what is counted, once; when a round ends; what a number stands for."""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from coordinator.aggregation import RULES, Entry, screened_mean
from coordinator.publisher import Publisher
from coordinator.round import Round, RoundState, verdict
from coordinator.rounds import MOST_REFUSALS, BaseRow, Rounds
from fleet.errors import TamperedError
from fleet.events import LONGEST_TEXT
from fleet.quantization import Template
from fleet.weights import Flat
from tests.coordinator.conftest import NOW, SETTINGS, SIZE, Fleet, delta_of

OPEN = Round(number=1, base=0, state=RoundState.OPEN, opened=NOW - timedelta(minutes=10), deadline=NOW)
BEFORE, AFTER = NOW - timedelta(seconds=1), NOW


@pytest.mark.parametrize(
    ("admitted", "asked", "now", "state"),
    [
        pytest.param(0, 5, BEFORE, RoundState.OPEN, id="nobody answered yet"),
        pytest.param(4, 5, BEFORE, RoundState.OPEN, id="a quorum waits for the last"),
        pytest.param(5, 5, BEFORE, RoundState.CLOSED, id="all answered"),
        pytest.param(5, 4, BEFORE, RoundState.CLOSED, id="all answered, one left the fleet"),
        pytest.param(2, 2, BEFORE, RoundState.OPEN, id="all answered, no quorum"),
        pytest.param(0, 0, BEFORE, RoundState.OPEN, id="nobody to ask"),
        pytest.param(3, 5, AFTER, RoundState.CLOSED, id="a quorum at the deadline"),
        pytest.param(2, 5, AFTER, RoundState.FAILED, id="no quorum at the deadline"),
        pytest.param(2, 2, AFTER, RoundState.FAILED, id="a fleet below the quorum"),
        pytest.param(0, 0, AFTER, RoundState.FAILED, id="an empty fleet"),
        pytest.param(0, 5, AFTER + timedelta(days=30), RoundState.FAILED, id="nobody, long after"),
        pytest.param(4, 5, NOW - timedelta(minutes=11), RoundState.OPEN, id="a clock that went back a little"),
        pytest.param(3, 5, NOW - timedelta(days=30), RoundState.CLOSED, id="a quorum, opened by a clock far ahead"),
        pytest.param(2, 5, NOW - timedelta(days=30), RoundState.FAILED, id="no quorum, opened by a clock far ahead"),
    ],
)
def test_I9_a_round_closes_or_fails_by_its_deadline_and_never_later(
    admitted: int, asked: int, now: object, state: RoundState
) -> None:
    assert verdict(OPEN, admitted=admitted, asked=asked, min_updates=3, now=now) is state  # type: ignore[arg-type]


def test_I1_an_update_given_to_two_rounds_is_counted_in_the_first(fleet: Fleet) -> None:
    first = fleet.opened()
    sent = fleet.update("node-0", first)
    fleet.receive(first, sent)
    fleet.answer(first, "node-1", "node-2")
    fleet.settle(first)
    second = fleet.opened()
    fleet.receive(second, sent)
    fleet.answer(second, "node-1", "node-2")
    fleet.settle(second)
    assert fleet.coordinator.registry.rounds.counted() == 3 + 2
    assert fleet.refused == ["round"]


def test_I1_an_update_sent_twice_is_counted_once_and_no_refusal(fleet: Fleet, tmp_path: Path) -> None:
    round_ = fleet.opened()
    for _ in range(3):
        fleet.answer(round_)
    fleet.settle(round_)
    once = Fleet(tmp_path / "once", fleet.template)
    assert fleet.bases[-1] == once.play_round()
    assert fleet.coordinator.registry.rounds.counted() == 5
    assert fleet.refused == []


def test_I1_an_update_that_comes_again_after_its_round_is_not_counted_again(fleet: Fleet) -> None:
    round_ = fleet.opened()
    sent = fleet.update("node-0", round_)
    fleet.answer(round_)
    fleet.settle(round_)
    fleet.receive(round_, sent)
    base = fleet.bases[-1]
    second = fleet.opened()
    fleet.receive(second, sent)
    fleet.answer(second, "node-1", "node-2")
    fleet.settle(second)
    assert fleet.bases[1] == base
    assert fleet.coordinator.registry.rounds.counted() == 5 + 2


def test_I1_an_update_that_missed_its_round_is_in_no_aggregate(fleet: Fleet, tmp_path: Path) -> None:
    round_ = fleet.opened()
    late = fleet.update("node-0", round_)
    fleet.answer(round_, "node-1", "node-2")
    fleet.settle(round_)
    fleet.receive(round_, late)
    fleet.play_round("node-1", "node-2")
    same = Fleet(tmp_path / "same", fleet.template)
    same.play_round("node-1", "node-2")
    assert fleet.bases[-1] == same.play_round("node-1", "node-2")
    assert fleet.coordinator.registry.rounds.counted() == 4


def test_I1_a_node_that_answers_a_round_twice_differently_is_counted_with_its_first(fleet: Fleet) -> None:
    round_ = fleet.opened()
    fleet.answer(round_, "node-0", "node-1")
    fleet.receive(round_, fleet.update("node-0", round_, -delta_of("node-0", 1)), "node-0")
    entries = fleet.coordinator.registry.rounds.entries(round_)
    assert len(entries) == 2
    assert fleet.refused == ["replayed"]


def test_I1_a_node_that_answers_a_round_from_two_bases_is_counted_once(fleet: Fleet) -> None:
    fleet.play_round()
    round_ = fleet.opened()
    fleet.answer(round_, "node-0", "node-1")
    fleet.receive(round_, fleet.update("node-0", round_, base=0), "node-0")
    assert fleet.refused == ["replayed"]
    assert len(fleet.coordinator.registry.rounds.entries(round_)) == 2


def test_I1_closing_a_round_with_an_update_of_an_earlier_aggregate_changes_nothing(fleet: Fleet) -> None:
    round_ = fleet.opened()
    fleet.answer(round_)
    counted = fleet.coordinator.registry.rounds.entries(round_)
    fleet.settle(round_)
    second = fleet.opened()
    base = replace(fleet.bases[-1], number=2, round=2)
    assert not fleet.coordinator.registry.rounds.close(second, base, counted[:1])
    assert fleet.coordinator.registry.rounds.current() == second
    assert len(fleet.bases) == 2


def test_I1_an_update_that_says_it_was_counted_already_closes_no_round(fleet: Fleet) -> None:
    fleet.play_round()
    round_ = fleet.opened()
    fleet.answer(round_)
    with closing(sqlite3.connect(fleet.folder / "registry.db")) as registry, registry:
        registry.execute("update \"update\" set aggregate = 1 where round = 2 and node = 'node-3'")
    rounds = fleet.coordinator.registry.rounds
    with pytest.raises(TamperedError, match="in an aggregate already"):
        rounds.close(round_, replace(fleet.bases[-1], number=2, round=2), rounds.entries(round_))
    assert rounds.current() == round_
    assert len(fleet.bases) == 2


def test_the_updates_of_a_failed_round_are_in_no_aggregate(fleet: Fleet) -> None:
    round_ = fleet.opened()
    fleet.answer(round_, "node-0")
    assert fleet.settle(round_) is RoundState.FAILED
    fleet.play_round("node-1", "node-2")
    assert fleet.coordinator.registry.rounds.counted() == 2
    assert len(fleet.bases) == 2


def test_I5_a_round_that_ended_does_not_end_again(fleet: Fleet) -> None:
    round_ = fleet.opened()
    fleet.answer(round_)
    fleet.settle(round_)
    rounds = fleet.coordinator.registry.rounds
    with pytest.raises(TamperedError, match="not open"):
        rounds.close(round_, replace(fleet.bases[-1], number=2), rounds.entries(round_))
    with pytest.raises(TamperedError, match="not open"):
        fleet.coordinator.registry.rounds.fail(round_.number)
    assert len(fleet.bases) == 2


def test_I5_the_numbers_of_rounds_and_bases_only_grow(fleet: Fleet) -> None:
    for answers in (["node-0", "node-1"], ["node-0"], ["node-0", "node-1"]):
        round_ = fleet.opened()
        fleet.answer(round_, *answers)
        fleet.settle(round_)
        fleet.close()
        fleet.open()
    assert [round_.number for round_ in fleet.coordinator.registry.rounds.all()] == [1, 2, 3]
    assert [(base.number, base.round) for base in fleet.bases] == [(0, 0), (1, 1), (2, 3)]


def test_I5_the_number_of_a_base_stands_for_one_digest(fleet: Fleet) -> None:
    first = fleet.play_round()
    round_ = fleet.opened()
    other = BaseRow(first.number, round_.number, "0" * 64, "0" * 64, "0" * 64, published=False)
    with pytest.raises(Exception, match="UNIQUE"):
        fleet.coordinator.registry.rounds.close(round_, other, [])
    assert fleet.bases[-1] == first
    assert fleet.coordinator.registry.rounds.current() == round_


def test_I5_the_base_on_the_shelf_is_the_one_on_record(fleet: Fleet) -> None:
    base = fleet.play_round()
    assert base.published
    weights = fleet.repository.target("bases/00000001/weights.bin")
    assert weights == fleet.template.quantize(fleet.coordinator.bases.master(base))
    assert fleet.coordinator.bases.newest().payload in str(fleet.repository.target("bases/00000001/manifest.json"))


def test_I8_an_update_of_a_node_revoked_after_it_sent_is_not_in_the_aggregate(fleet: Fleet, tmp_path: Path) -> None:
    round_ = fleet.opened()
    fleet.answer(round_)
    fleet.coordinator.registry.roster.revoke("node-3")
    fleet.settle(round_)
    never = Fleet(tmp_path / "never", fleet.template)
    assert fleet.bases[-1] == never.play_round("node-0", "node-1", "node-2", "node-4")
    assert fleet.coordinator.registry.rounds.counted() == 4


def test_I8_a_node_revoked_while_the_mean_is_made_is_not_in_the_aggregate(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def revoking(entries: Sequence[Entry], read: Callable[[str], Flat]) -> Flat:
        fleet.coordinator.registry.roster.revoke("node-3")
        return screened_mean(entries, read)

    monkeypatch.setitem(RULES, "screened-mean", revoking)
    round_ = fleet.opened()
    fleet.answer(round_)
    assert fleet.settle(round_) is RoundState.OPEN
    assert fleet.settle(round_) is RoundState.CLOSED
    assert fleet.coordinator.registry.rounds.counted() == 4


def test_I9_a_round_whose_updates_cannot_be_read_fails_and_the_next_one_closes(fleet: Fleet) -> None:
    round_ = fleet.opened()
    fleet.answer(round_)
    next((fleet.folder / "spool").iterdir()).write_bytes(b"a bad sector")
    assert fleet.settle(round_) is RoundState.FAILED
    assert fleet.play_round().number == 1


def spooled(fleet: Fleet) -> int:
    return len(list((fleet.folder / "spool").glob("*")))


@pytest.mark.parametrize("names", [["node-0"], ["node-0", "node-1"]], ids=["failed", "closed"])
def test_a_round_that_ended_leaves_no_delta_behind(fleet: Fleet, names: list[str]) -> None:
    round_ = fleet.opened()
    fleet.answer(round_, *names)
    fleet.close()
    fleet.open()
    assert spooled(fleet) == len(names)
    fleet.settle(round_)
    assert spooled(fleet) == 0


def test_what_a_kill_left_of_a_round_that_ended_is_gone_at_the_next_start(fleet: Fleet) -> None:
    round_ = fleet.opened()
    fleet.answer(round_, "node-0")
    fleet.coordinator.registry.rounds.fail(round_.number)  # and there the power goes
    fleet.close()
    fleet.open()
    assert spooled(fleet) == 0


def test_I8_a_round_whose_quorum_was_revoked_fails(fleet: Fleet) -> None:
    round_ = fleet.opened()
    fleet.answer(round_, "node-0", "node-1")
    fleet.coordinator.registry.roster.revoke("node-1")
    assert fleet.settle(round_) is RoundState.FAILED


@pytest.mark.parametrize("gone", [["node-1"], ["node-0", "node-1"]])
def test_I8_a_round_whose_quorum_is_revoked_as_it_closes_does_not_close(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, gone: list[str]
) -> None:
    round_ = fleet.opened()
    fleet.answer(round_, "node-0", "node-1")
    fleet.pass_time(timedelta(days=1))
    real, read = Rounds.entries, []

    def entries(book: Rounds, of: Round) -> list[Entry]:
        found = real(book, of)
        if not read:
            read.append(of)
            for name in gone:
                fleet.coordinator.revoke(name)
        return found

    monkeypatch.setattr(Rounds, "entries", entries)
    assert fleet.coordinator.settle_round(round_) is RoundState.OPEN
    assert fleet.coordinator.settle_round(round_) is RoundState.FAILED
    assert fleet.coordinator.registry.rounds.counted() == 0


def test_a_base_that_could_not_be_published_is_the_error_that_is_told(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: object) -> None:
        raise TamperedError("5.releases.json was altered")

    round_ = fleet.opened()
    fleet.answer(round_)
    with monkeypatch.context() as patch:
        patch.setattr(Publisher, "base", damaged)
        with pytest.raises(TamperedError, match="was altered"):
            fleet.settle(round_)
    fleet.coordinator.finish()
    assert fleet.coordinator.bases.newest().published


def test_what_a_node_is_refused_for_fills_no_registry(fleet: Fleet) -> None:
    round_ = fleet.opened()
    sent = fleet.update("node-0", round_)
    for _ in range(MOST_REFUSALS + 5):
        fleet.receive(round_, replace(sent, codec="x" * 1_000_000), "node-0")
    refusals = fleet.coordinator.registry.rounds.refusals()
    assert len(refusals) == MOST_REFUSALS
    assert max(len(refusal.reason) for refusal in refusals) == LONGEST_TEXT


def test_I8_a_revoked_node_is_not_asked_again(fleet: Fleet) -> None:
    round_ = fleet.opened()
    fleet.answer(round_, "node-0")
    fleet.coordinator.registry.roster.revoke("node-1")
    assert set(fleet.coordinator.waiting_for(round_)) == {"node-2", "node-3", "node-4"}


def test_I9_one_round_is_open_at_a_time(fleet: Fleet) -> None:
    round_ = fleet.opened()
    assert fleet.opened() == round_
    with pytest.raises(TamperedError, match="open already"):
        fleet.coordinator.registry.rounds.open(0, NOW, NOW)


def test_I9_a_round_left_open_by_a_crash_goes_on_with_what_it_had(fleet: Fleet) -> None:
    round_ = fleet.opened()
    fleet.answer(round_, "node-0", "node-1")
    fleet.close()
    fleet.open()
    assert fleet.opened() == round_
    assert set(fleet.coordinator.waiting_for(round_)) == {"node-2", "node-3", "node-4"}
    fleet.answer(round_, "node-2")
    fleet.settle(round_)
    assert fleet.coordinator.registry.rounds.counted() == 3


def test_I9_a_round_found_open_long_after_its_deadline_ends_at_once(fleet: Fleet) -> None:
    round_ = fleet.opened()
    fleet.close()
    fleet.pass_time(timedelta(days=400))
    fleet.open()
    assert fleet.settle(fleet.opened()) is RoundState.FAILED
    assert fleet.opened().number == round_.number + 1


def test_I9_a_fleet_that_never_answers_uses_up_the_plan_and_stops(tmp_path: Path, template: Template) -> None:
    fleet = Fleet(tmp_path / "coordinator", template, SETTINGS.changed(round={"rounds": 3}))
    for _ in range(3):
        assert fleet.settle(fleet.opened()) is RoundState.FAILED
    assert fleet.coordinator.open_round(asked=True) is None


def test_a_round_that_all_answered_closes_before_its_deadline(fleet: Fleet) -> None:
    round_ = fleet.opened()
    fleet.answer(round_)
    assert fleet.settle(round_, late=False) is RoundState.CLOSED


def test_a_stale_delta_counts_less_than_a_fresh_one(fleet: Fleet) -> None:
    fleet.play_round()
    round_ = fleet.opened()
    step = np.full(SIZE, 0.1, np.float32)
    fleet.receive(round_, fleet.update("node-0", round_, step, base=0))
    fleet.receive(round_, fleet.update("node-1", round_, step))
    assert {entry.staleness for entry in fleet.coordinator.registry.rounds.entries(round_)} == {0, 1}
    before = fleet.bases[-1]
    fleet.settle(round_)
    last_step = fleet.coordinator.bases.master(before) - fleet.coordinator.bases.master(fleet.bases[0])
    moved = fleet.coordinator.bases.master(fleet.bases[-1]) - fleet.coordinator.bases.master(before)
    np.testing.assert_allclose(moved - 0.5 * last_step, 0.1 * (1 + 2**-0.5) / 2, rtol=1e-3)
