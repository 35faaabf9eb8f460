"""The life of a release on one node: which moves exist, and which one the evidence calls for."""

import sqlite3
from dataclasses import dataclass
from enum import StrEnum

from fleet.evidence import ROLLBACK_EVIDENCE, VETO_EVIDENCE
from fleet.messages import Watch
from node.store import transaction


class Stage(StrEnum):
    """Where a release stands on this node.

    A node that refuses a release goes on comparing it, unheard, for as many windows as if it had not: what a node
    reports, when, and which windows it learns from do not depend on what the windows said. So ``VETOED`` is refused
    in shadow, ``MUTED`` is refused while its wave is open, and ``ROLLED_BACK`` was on probation before.
    """

    STAGED = "staged"
    ADMITTED = "admitted"
    SHADOW = "shadow"
    VETOED = "vetoed"
    PROBATION = "probation"
    MUTED = "muted"
    ROLLED_BACK = "rolled-back"
    COMMITTED = "committed"
    REJECTED = "rejected"


NEXT = {
    Stage.STAGED: {Stage.ADMITTED, Stage.REJECTED},
    Stage.ADMITTED: {Stage.SHADOW, Stage.REJECTED},
    Stage.SHADOW: {Stage.PROBATION, Stage.VETOED, Stage.MUTED, Stage.REJECTED},
    Stage.VETOED: {Stage.MUTED, Stage.REJECTED},
    Stage.PROBATION: {Stage.COMMITTED, Stage.ROLLED_BACK, Stage.REJECTED},
    Stage.MUTED: {Stage.REJECTED},
    Stage.ROLLED_BACK: {Stage.REJECTED},
}
CANDIDATE = frozenset(NEXT)
FINAL = frozenset(Stage) - CANDIDATE
IN_SHADOW = frozenset({Stage.SHADOW, Stage.VETOED})  # its wave is not open yet
UNHEARD = frozenset({Stage.SHADOW, Stage.VETOED, Stage.MUTED, Stage.ROLLED_BACK})  # compared, and never answers
WATCH = dict.fromkeys(IN_SHADOW, Watch.SHADOW) | dict.fromkeys(
    (Stage.PROBATION, Stage.MUTED, Stage.ROLLED_BACK), Watch.PROBATION
)  # for which report a stage's windows are compared


@dataclass(frozen=True, slots=True)
class Signs:
    """What a node knows about a release that it watches.

    Attributes:
        in_wave: The signed rollout names this release and this node.
        withdrawn: The rollout of this release was halted.
        skips_shadow: It takes another release back, and its weights were served here before.
        alone: It takes back the release that was proved last: there is none to compare it with, or to go back to.
        harm: Evidence that it answers worse than the model beside it.
        windows: Labelled windows compared in this stage.
        quota: Windows that a report of this stage takes; infinite while the manifest that says so is damaged.
    """

    in_wave: bool
    withdrawn: bool
    skips_shadow: bool
    alone: bool
    harm: float
    windows: int
    quota: float


def next_stage(stage: Stage, signs: Signs) -> tuple[Stage, str] | None:
    """The move that the signs call for, with its reason; None to stay. The fleet decides, a node can only veto."""
    if stage is Stage.ADMITTED:
        return Stage.SHADOW, "admitted"
    if signs.withdrawn and stage is not Stage.STAGED:
        back = Stage.ROLLED_BACK if stage is Stage.PROBATION else Stage.REJECTED
        return back, "withdrawn by the coordinator"
    if stage in IN_SHADOW:
        return _after_shadow(stage, signs)
    if stage is Stage.PROBATION and signs.harm >= ROLLBACK_EVIDENCE:
        return Stage.ROLLED_BACK, f"evidence of harm {signs.harm:.0f}"
    is_over = signs.skips_shadow or signs.alone or signs.windows >= signs.quota
    if stage is Stage.PROBATION and is_over:
        return Stage.COMMITTED, f"{signs.windows} windows on probation"
    if stage in (Stage.MUTED, Stage.ROLLED_BACK) and is_over:
        return Stage.REJECTED, f"refused, and compared in {signs.windows} windows all the same"
    return None


def _after_shadow(stage: Stage, signs: Signs) -> tuple[Stage, str] | None:
    if stage is Stage.SHADOW and signs.harm >= VETO_EVIDENCE:
        return Stage.MUTED if signs.in_wave else Stage.VETOED, f"veto: evidence of harm {signs.harm:.0f}"
    if signs.in_wave:
        return Stage.PROBATION if stage is Stage.SHADOW else Stage.MUTED, "its wave opened"
    return None


class StageLog:
    """Every move, one durable append; the last row of a release is where it stands."""

    def __init__(self, store: sqlite3.Connection) -> None:
        self._store = store

    def append(self, release: int, stage: Stage, reason: str) -> None:
        """Record a move that exists.

        Raises:
            ValueError: It does not: the table is the law.
        """
        with transaction(self._store):
            current = self.stage(release)
            allowed = NEXT.get(current, set()) if current else {Stage.STAGED}
            if stage not in allowed:
                raise ValueError(f"release {release} cannot go from {current} to {stage}")
            self._store.execute(
                "insert into stage (release, stage, reason, reading) "
                "values (?, ?, ?, (select coalesce(max(seq) + 1, 0) from reading))",
                (release, stage.value, reason),
            )

    def stage(self, release: int) -> Stage | None:
        """Where ``release`` stands; None if it was never staged here."""
        query = "select stage from stage where release = ? order by seq desc limit 1"
        row = self._store.execute(query, (release,)).fetchone()
        return Stage(row[0]) if row else None

    def newest(self) -> int | None:
        """The highest release ever staged here; nothing at or below it is staged again."""
        value = self._store.execute("select max(release) from stage").fetchone()[0]
        return None if value is None else int(value)

    def proved(self) -> int | None:
        """The newest release that was committed here."""
        return max((number for (number,) in self._rows_of(Stage.COMMITTED)), default=None)

    def candidate(self) -> tuple[int, Stage] | None:
        """The release that is on its way, if one is."""
        newest = self.newest()
        stage = None if newest is None else self.stage(newest)
        return (newest, stage) if newest is not None and stage in CANDIDATE else None

    def serving(self) -> tuple[int | None, int | None]:
        """The release that should answer by this log, and the one before it: what the pointer must say."""
        committed = [row[0] for row in self._rows_of(Stage.COMMITTED)]
        candidate = self.candidate()
        if candidate and candidate[1] is Stage.PROBATION:
            return candidate[0], committed[-1] if committed else None
        return (committed[-1] if committed else None), (committed[-2] if len(committed) > 1 else None)

    def kept(self) -> set[int]:
        """Releases that may answer or be watched: the last two that were committed, and the one on its way."""
        candidate = self.candidate()
        return {row[0] for row in self._rows_of(Stage.COMMITTED)[-2:]} | ({candidate[0]} if candidate else set())

    def ended(self) -> set[int]:
        """Releases that were staged here and that nothing can return to."""
        return {row[0] for row in self._store.execute("select distinct release from stage")} - self.kept()

    def history(self) -> list[tuple[int, Stage, str]]:
        """All moves, oldest first."""
        rows = self._store.execute("select release, stage, reason from stage order by seq")
        return [(row[0], Stage(row[1]), row[2]) for row in rows]

    def _rows_of(self, stage: Stage) -> list[tuple[int]]:
        return self._store.execute("select release from stage where stage = ? order by seq", (stage.value,)).fetchall()
