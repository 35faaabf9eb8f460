"""Live windows on which two models answered: each labelled once, each evidence once."""

import sqlite3
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fleet.errors import InputError
from fleet.messages import Watch
from fleet.task import Signature
from node.predictor import Answer, Predictor


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


class Shadow:
    """The record of live answers. The rival answers off the reply path, unheard.

    In shadow the rival is the candidate; on probation the candidate answers and the rival is the old model.
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
        """Let the rival answer the readings that ``answering`` answered, and forget all readings seen so far."""
        query = "select seq, x, release from reading where x is not null order by seq"
        for seq, raw, release in self._store.execute(query).fetchall():
            given = None
            if rival is not None and release == answering:
                x = np.frombuffer(raw, np.float32).reshape(self._signature.shape)
                given = (rival.release, rival.answer(x).label)
            statement = "update reading set x = null, rival = ?, rival_answer = ? where seq = ?"
            self._store.execute(statement, (*(given or (None, None)), seq))

    def pairs(self, candidate: int, watch: Watch) -> list[Pair]:
        """Labelled windows of one candidate in one stage, oldest first."""
        ours, theirs = ("rival", "release") if watch is Watch.SHADOW else ("release", "rival")
        new, old = ("rival_answer", "answer") if watch is Watch.SHADOW else ("answer", "rival_answer")
        query = (  # the names are ours, chosen above
            f"select seq, {new} = label, {old} = label from reading "  # noqa: S608
            f"where {ours} = ? and {theirs} < ? and label is not null order by seq"
        )
        rows = self._store.execute(query, (candidate, candidate))
        return [Pair(seq, bool(new_right), bool(old_right)) for seq, new_right, old_right in rows]

    def unreported(self, candidate: int, watch: Watch) -> list[Pair]:
        """Those of ``pairs`` that are in no report yet."""
        used = {row[0] for row in self._store.execute("select seq from reading where report is not null")}
        return [pair for pair in self.pairs(candidate, watch) if pair.seq not in used]
