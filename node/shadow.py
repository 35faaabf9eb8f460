"""Live windows: each labelled once, and each either evidence about two models, once, or a lesson for the learner."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fleet.errors import InputError
from fleet.messages import Watch
from fleet.task import Signature
from node.buffer import Buffer
from node.predictor import Answer, Predictor
from node.store import transaction

UNLABELLED = 1000  # readings whose values are kept for a label that may come
REMEMBERED = 10_000  # readings that a label still finds
_ENDLESS = 2**62
_PAIRS = (
    "select seq, case release when :candidate then answer else rival_answer end = label as new, "
    "case release when :candidate then rival_answer else answer end = label as old from reading "
    "where max(release, rival) = :candidate and release != rival and label is not null "
    "and seq >= :first and seq < :last"
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A labelled window: was the model on trial right, and the one it is measured against?"""

    seq: int
    new_right: bool
    old_right: bool

    @property
    def harm(self) -> int:
        """+1 if only the new model was wrong, -1 if only the old one, else 0."""
        return int(self.old_right) - int(self.new_right)


@dataclass(frozen=True, slots=True)
class Reading:
    """A reading ``x`` that was answered, and the release of the rival that watched then; None if nobody did."""

    x: npt.NDArray[np.float32]
    answer: Answer
    watch: int | None


class Shadow:
    """The record of live answers. The rival answers off the reply path, unheard.

    On probation the candidate answers and the rival is the old model; otherwise the rival is the candidate.

    A reading that was answered while a rival watched is evidence, and is never learned from; one that nobody watched
    is a lesson, and is never evidence. Which of them it is, is fixed when it is answered, by what runs at that time,
    never by the reading, its answer or its label: a node that refuses a release goes on watching it for as long as if
    it had not (``node.promotion.Stage``).
    """

    def __init__(self, store: sqlite3.Connection, signature: Signature) -> None:
        self._store = store
        self._signature = signature

    def record(self, x: npt.NDArray[np.float32], answer: Answer) -> int:
        """Keep an answer, before the reply; the number of its request."""
        seq = self.next_seq()
        self._store.execute(
            "insert into reading (seq, x, release, answer) values (?, ?, ?, ?)",
            (seq, x.tobytes(), answer.release, answer.label),
        )
        return seq

    def record_request(self, request: str, readings: Sequence[Reading]) -> None:
        """Keep what was answered together, inside a transaction of the caller. A name used again is a new request."""
        first = self.next_seq()
        rows = [
            (first + i, one.x.tobytes(), one.answer.release, one.answer.label, one.watch, one.watch is None, *name)
            for i, (one, name) in enumerate(zip(readings, _first_only(request, len(readings)), strict=True))
        ]
        columns = "seq, x, release, answer, watch, lesson, request, size"
        self._store.executemany(f"insert into reading ({columns}) values (?, ?, ?, ?, ?, ?, ?, ?)", rows)  # noqa: S608

    def teach(self, request: str, labels: Sequence[int], buffer: Buffer) -> int:
        """The truth about the readings of a request, inside a transaction of the caller; lessons go to the buffer.

        The first label of a reading counts; how many were new.

        Raises:
            InputError: No such request, not a label a reading, or no such class; nothing changes.
        """
        for label in labels:
            self._signature.check_label(label)
        query = "select seq, size from reading where request = ? order by seq desc limit 1"
        row = self._store.execute(query, (request,)).fetchone()
        if row is None:
            raise InputError(f"id: no answer {request!r} is on record")
        first, size = row
        if len(labels) != size:
            raise InputError(f"labels: {len(labels)}, the request {request!r} had {size} readings")
        statement = "update reading set label = ? where seq = ? and label is null"
        new = [
            (seq, label)
            for seq, label in enumerate(labels, first)
            if self._store.execute(statement, (label, seq)).rowcount
        ]
        buffer.append([lesson for seq, label in new for lesson in self._lesson(seq, label)])
        return len(new)

    def _lesson(self, seq: int, label: int) -> list[tuple[bytes, int]]:
        """The example of one reading, which hands over its values; none if it is evidence or was forgotten."""
        query = "select x from reading where seq = ? and lesson and x is not null"
        rows = self._store.execute(query, (seq,)).fetchall()
        self._store.execute("update reading set x = null where seq = ? and lesson", (seq,))
        return [(x, label) for (x,) in rows]

    def forget(self) -> None:
        """Drop the values of all but the newest unlabelled readings, and what neither a label nor a report will find.

        Of the newest release, and of whatever is compared with it, all that was labelled is evidence and stays.
        """
        query = "select seq from reading where x is not null order by seq desc limit 1 offset ?"
        if row := self._store.execute(query, (UNLABELLED,)).fetchone():
            self._store.execute("update reading set x = null where x is not null and seq <= ?", row)
        self._store.execute(
            "delete from reading where seq < ? and "
            "(label is null or rival is null or max(release, rival) < (select max(release) from stage))",
            (self.next_seq() - REMEMBERED,),
        )

    def next_seq(self) -> int:
        """The number of the next request."""
        return int(self._store.execute("select coalesce(max(seq) + 1, 0) from reading").fetchone()[0])

    def answered_with(self) -> set[int]:
        """Releases that ever answered here."""
        return {row[0] for row in self._store.execute("select distinct release from reading")}

    def label(self, seq: int, label: int) -> None:
        """The truth about an earlier answer; the first one counts.

        Raises:
            InputError: No such request, or no such class.
        """
        self._signature.check_label(label)
        done = self._store.execute("update reading set label = coalesce(label, ?) where seq = ?", (label, seq))
        if done.rowcount == 0:
            raise InputError(f"label: there was no request {seq}")

    def compare(self, rival: Predictor | None, answering: int) -> None:
        """Let the rival answer the readings that ``answering`` answered, and forget all of them but lessons.

        A rival is shown nothing that was answered before it was there, and nothing twice.
        """
        query = "select seq, x, release, watch from reading where x is not null and not lesson order by seq"
        rows = []
        for seq, raw, release, watch in self._store.execute(query).fetchall():
            given: tuple[int | None, int | None] = (None, None)
            if rival is not None and release == answering and watch in (None, rival.release):
                x = np.frombuffer(raw, np.float32).reshape(self._signature.shape)
                given = (rival.release, rival.answer(x).label)
            rows.append((*given, seq))
        if rows:
            with transaction(self._store):  # one flush of the disk for all of them
                self._store.executemany("update reading set x = null, rival = ?, rival_answer = ? where seq = ?", rows)

    def pairs(self, candidate: int, watch: Watch) -> list[Pair]:
        """Labelled windows of one candidate before its wave opened here, or since; oldest first."""
        rows = self._store.execute(f"{_PAIRS} order by seq", self._range(candidate, watch))
        return [Pair(seq, bool(new_right), bool(old_right)) for seq, new_right, old_right in rows]

    def tally(self, candidate: int, watch: Watch) -> tuple[int, list[int]]:
        """How many windows are in ``pairs``, and the ``harm`` of those that only one model had right; oldest first.

        A node asks twice a second while a release is on trial, and those windows are few.
        """
        span = self._range(candidate, watch)
        (windows,) = self._store.execute(f"select count(*) from ({_PAIRS})", span).fetchone()  # noqa: S608 - our own words
        told_apart = f"select old - new from ({_PAIRS}) where old != new order by seq"  # noqa: S608
        rows = self._store.execute(told_apart, span)
        return int(windows), [harm for (harm,) in rows]

    def labelled(self, candidate: int, watch: Watch) -> int:
        """How many windows are in ``pairs``, or will be, as far as can be told before they are compared."""
        query = (
            "select count(*) from (select *, case when x is null then rival else watch end as other from reading) "
            "where max(release, other) = :candidate and release != other and label is not null "
            "and seq >= :first and seq < :last"
        )
        return int(self._store.execute(query, self._range(candidate, watch)).fetchone()[0])

    def _range(self, candidate: int, watch: Watch) -> dict[str, int]:
        """The readings before a candidate's wave opened here, or since; none of the latter if it did not open."""
        since = "select min(reading) from stage where release = ? and stage in ('probation', 'muted')"
        opened = self._store.execute(since, (candidate,)).fetchone()[0]
        at = _ENDLESS if opened is None else opened
        first, last = (at, _ENDLESS) if watch is Watch.PROBATION else (0, at)
        return {"candidate": candidate, "first": first, "last": last}

    def unreported(self, candidate: int, watch: Watch) -> list[Pair]:
        """Those of ``pairs`` that are in no report yet."""
        used = {row[0] for row in self._store.execute("select seq from reading where report is not null")}
        return [pair for pair in self.pairs(candidate, watch) if pair.seq not in used]


def _first_only(request: str, size: int) -> list[tuple[str | None, int | None]]:
    """A request's name and size stand with the first of its readings; the others follow it."""
    return [(request, size), *[(None, None)] * (size - 1)]
