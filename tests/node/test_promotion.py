"""The life of a release: the moves that exist, the ones that the signs call for, and a log that only grows."""

import sqlite3
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from fleet.evidence import ROLLBACK_EVIDENCE, VETO_EVIDENCE
from node.promotion import (
    CANDIDATE,
    FINAL,
    NEXT,
    Signs,
    Stage,
    StageLog,
    next_stage,
)
from node.store import open_store

QUIET = Signs(in_wave=False, withdrawn=False, skips_shadow=False, alone=False, harm=1.0, windows=0, quota=2)
PATH_TO: dict[Stage | None, list[Stage]] = {
    None: [],
    Stage.STAGED: [Stage.STAGED],
    Stage.ADMITTED: [Stage.STAGED, Stage.ADMITTED],
    Stage.SHADOW: [Stage.STAGED, Stage.ADMITTED, Stage.SHADOW],
    Stage.PROBATION: [Stage.STAGED, Stage.ADMITTED, Stage.SHADOW, Stage.PROBATION],
    Stage.COMMITTED: [Stage.STAGED, Stage.ADMITTED, Stage.SHADOW, Stage.PROBATION, Stage.COMMITTED],
    Stage.VETOED: [Stage.STAGED, Stage.ADMITTED, Stage.SHADOW, Stage.VETOED],
    Stage.MUTED: [Stage.STAGED, Stage.ADMITTED, Stage.SHADOW, Stage.VETOED, Stage.MUTED],
    Stage.ROLLED_BACK: [Stage.STAGED, Stage.ADMITTED, Stage.SHADOW, Stage.PROBATION, Stage.ROLLED_BACK],
    Stage.REJECTED: [Stage.STAGED, Stage.REJECTED],
}
MOVES = {
    (None, Stage.STAGED),
    (Stage.STAGED, Stage.ADMITTED),
    (Stage.STAGED, Stage.REJECTED),
    (Stage.ADMITTED, Stage.SHADOW),
    (Stage.ADMITTED, Stage.REJECTED),
    (Stage.SHADOW, Stage.PROBATION),
    (Stage.SHADOW, Stage.VETOED),
    (Stage.SHADOW, Stage.MUTED),
    (Stage.SHADOW, Stage.REJECTED),
    (Stage.VETOED, Stage.MUTED),
    (Stage.VETOED, Stage.REJECTED),
    (Stage.MUTED, Stage.REJECTED),
    (Stage.ROLLED_BACK, Stage.REJECTED),
    (Stage.PROBATION, Stage.COMMITTED),
    (Stage.PROBATION, Stage.ROLLED_BACK),
    (Stage.PROBATION, Stage.REJECTED),
}


def walk(log: StageLog, release: int, to: Stage | None) -> None:
    for stage in PATH_TO[to]:
        log.append(release, stage, "test")


@pytest.fixture
def log(store: sqlite3.Connection) -> StageLog:
    return StageLog(store)


@pytest.mark.parametrize(("here", "there"), [*product(PATH_TO, Stage)], ids=lambda stage: str(stage and stage.value))
def test_only_moves_in_the_table_are_made(log: StageLog, here: Stage | None, there: Stage) -> None:
    walk(log, 1, here)
    before = log.history()
    if (here, there) in MOVES:
        log.append(1, there, "test")
        assert log.history() == [*before, (1, there, "test")]
    else:
        with pytest.raises(ValueError, match=f"release 1 cannot go from .* to {there}"):
            log.append(1, there, "test")
        assert log.history() == before


def test_a_release_ends_committed_or_rejected() -> None:
    assert {Stage.COMMITTED, Stage.REJECTED} == FINAL
    assert frozenset(Stage) - FINAL == CANDIDATE == frozenset(NEXT)


@pytest.mark.parametrize(
    ("stage", "signs", "move"),
    [
        pytest.param(Stage.STAGED, QUIET, None, id="staged: admission decides"),
        pytest.param(Stage.ADMITTED, QUIET, Stage.SHADOW, id="admitted: shadow is for all"),
        pytest.param(Stage.SHADOW, QUIET, None, id="shadow: until its wave"),
        pytest.param(Stage.SHADOW, replace(QUIET, windows=10**6), None, id="shadow: no node decides alone"),
        pytest.param(Stage.SHADOW, replace(QUIET, in_wave=True), Stage.PROBATION, id="shadow: its wave opened"),
        pytest.param(Stage.SHADOW, replace(QUIET, harm=VETO_EVIDENCE), Stage.VETOED, id="shadow: veto"),
        pytest.param(
            Stage.SHADOW, replace(QUIET, harm=VETO_EVIDENCE, in_wave=True), Stage.MUTED, id="shadow: veto in wave"
        ),
        pytest.param(Stage.VETOED, replace(QUIET, windows=9), None, id="vetoed: compared on until its wave"),
        pytest.param(Stage.VETOED, replace(QUIET, in_wave=True), Stage.MUTED, id="vetoed: its wave opened"),
        pytest.param(Stage.VETOED, replace(QUIET, withdrawn=True), Stage.REJECTED, id="vetoed: withdrawn"),
        *[
            pytest.param(stage, replace(QUIET, windows=windows, withdrawn=withdrawn), end, id=f"{stage}: {why}")
            for stage in (Stage.MUTED, Stage.ROLLED_BACK)
            for windows, withdrawn, end, why in (
                (1, False, None, "compared on as if it were not"),
                (2, False, Stage.REJECTED, "quota"),
                (0, True, Stage.REJECTED, "withdrawn"),
            )
        ],
        pytest.param(
            Stage.SHADOW, replace(QUIET, harm=VETO_EVIDENCE - 1, in_wave=True), Stage.PROBATION, id="shadow: near veto"
        ),
        pytest.param(
            Stage.SHADOW, replace(QUIET, withdrawn=True, in_wave=True), Stage.REJECTED, id="shadow: withdrawn"
        ),
        pytest.param(Stage.PROBATION, QUIET, None, id="probation: until its quota"),
        pytest.param(Stage.PROBATION, replace(QUIET, windows=1), None, id="probation: one window short"),
        pytest.param(Stage.PROBATION, replace(QUIET, windows=2), Stage.COMMITTED, id="probation: quota"),
        pytest.param(Stage.PROBATION, replace(QUIET, skips_shadow=True), Stage.COMMITTED, id="probation: withdrawal"),
        pytest.param(Stage.PROBATION, replace(QUIET, alone=True), Stage.COMMITTED, id="probation: no way back"),
        pytest.param(
            Stage.PROBATION, replace(QUIET, windows=2, harm=ROLLBACK_EVIDENCE), Stage.ROLLED_BACK, id="probation: harm"
        ),
        pytest.param(
            Stage.PROBATION, replace(QUIET, harm=ROLLBACK_EVIDENCE - 1), None, id="probation: harm, but not enough"
        ),
        pytest.param(
            Stage.PROBATION, replace(QUIET, windows=2, withdrawn=True), Stage.ROLLED_BACK, id="probation: withdrawn"
        ),
        pytest.param(Stage.PROBATION, replace(QUIET, in_wave=False), None, id="probation: its wave closed"),
        *[pytest.param(stage, replace(QUIET, in_wave=True, windows=9), None, id=stage) for stage in sorted(FINAL)],
    ],
)
def test_the_signs_call_for_one_move(stage: Stage, signs: Signs, move: Stage | None) -> None:
    decided = next_stage(stage, signs)
    assert (decided[0] if decided else None) == move
    assert move is None or move in NEXT[stage]


@pytest.mark.parametrize(
    ("walked", "serving", "candidate", "kept"),
    [
        pytest.param({}, (None, None), None, set(), id="new"),
        pytest.param({1: Stage.STAGED}, (None, None), (1, Stage.STAGED), {1}, id="provisioning"),
        pytest.param({1: Stage.COMMITTED}, (1, None), None, {1}, id="provisioned"),
        pytest.param(
            {1: Stage.COMMITTED, 2: Stage.SHADOW}, (1, None), (2, Stage.SHADOW), {1, 2}, id="the second in shadow"
        ),
        pytest.param({1: Stage.COMMITTED, 2: Stage.PROBATION}, (2, 1), (2, Stage.PROBATION), {1, 2}, id="on probation"),
        pytest.param({1: Stage.COMMITTED, 2: Stage.REJECTED}, (1, None), None, {1}, id="rejected"),
        *[
            pytest.param({1: Stage.COMMITTED, 2: stage}, (1, None), (2, stage), {1, 2}, id=f"{stage}: never answers")
            for stage in (Stage.VETOED, Stage.MUTED, Stage.ROLLED_BACK)
        ],
        pytest.param({1: Stage.COMMITTED, 2: Stage.COMMITTED}, (2, 1), None, {1, 2}, id="committed"),
        pytest.param(
            {1: Stage.COMMITTED, 2: Stage.COMMITTED, 3: Stage.PROBATION},
            (3, 2),
            (3, Stage.PROBATION),
            {1, 2, 3},
            id="the third on probation: after a rollback there must be a release to fall back on",
        ),
        pytest.param(
            {1: Stage.COMMITTED, 2: Stage.COMMITTED, 3: Stage.REJECTED, 4: Stage.REJECTED},
            (2, 1),
            None,
            {1, 2},
            id="two that failed",
        ),
    ],
)
def test_the_log_says_what_serves_what_comes_and_what_is_kept(
    log: StageLog,
    walked: dict[int, Stage],
    serving: tuple[int | None, int | None],
    candidate: tuple[int, Stage] | None,
    kept: set[int],
) -> None:
    for release, stage in walked.items():
        walk(log, release, stage)
    assert (log.serving(), log.candidate(), log.kept()) == (serving, candidate, kept)
    assert log.newest() == (max(walked) if walked else None)


def test_two_processes_do_not_end_a_release_in_two_ways(
    tmp_path: Path, log: StageLog, store: sqlite3.Connection
) -> None:
    here = open_store(tmp_path / "node.db")
    here.execute("pragma busy_timeout = 0")

    class Raced(StageLog):
        def stage(self, release: int) -> Stage | None:
            found = super().stage(release)
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                StageLog(here).append(release, Stage.REJECTED, "by the other")
            return found

    log.append(1, Stage.STAGED, "verified")
    Raced(store).append(1, Stage.ADMITTED, "golden outputs match")
    assert [stage for _, stage, _ in log.history()] == [Stage.STAGED, Stage.ADMITTED]
    here.close()


def test_a_move_is_on_the_disk_when_it_returns(tmp_path: Path, log: StageLog) -> None:
    walk(log, 1, Stage.SHADOW)
    other = open_store(tmp_path / "node.db")
    assert StageLog(other).stage(1) is Stage.SHADOW
    other.close()


@pytest.mark.parametrize("statement", ["update stage set stage = 'committed'", "delete from stage"])
def test_a_move_cannot_be_unmade(log: StageLog, store: sqlite3.Connection, statement: str) -> None:
    walk(log, 1, Stage.REJECTED)
    with pytest.raises(sqlite3.IntegrityError, match="append only"):
        store.execute(statement)
    assert log.stage(1) is Stage.REJECTED
