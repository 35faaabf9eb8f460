"""The shadow: two models on the same live readings, each labelled once, each evidence once."""

import sqlite3

import numpy as np
import pytest

from fleet.errors import InputError
from fleet.messages import Watch
from fleet.task import Signature
from node.buffer import Buffer
from node.predictor import Answer
from node.promotion import Stage, StageLog
from node.shadow import Pair, Reading, Shadow

SIGNATURE = Signature("x", (2,), -1.0, 1.0, ("left", "right"))
X = np.array([0.5, 0.1], np.float32)


class Always:
    """A rival that always says the same, and remembers what it was shown."""

    def __init__(self, release: int, label: int) -> None:
        self.release = release
        self._label = label
        self.seen: list[np.ndarray] = []

    def answer(self, x: np.ndarray) -> Answer:
        self.seen.append(x)
        return answer(self.release, self._label)


def answer(release: int, label: int) -> Answer:
    return Answer(label, np.zeros(2, np.float32), release)


@pytest.fixture
def shadow(store: sqlite3.Connection) -> Shadow:
    return Shadow(store, SIGNATURE)


def test_requests_are_numbered_in_order(shadow: Shadow) -> None:
    assert [shadow.record(X, answer(1, 0)) for _ in range(3)] == [0, 1, 2]
    assert shadow.next_seq() == 3
    assert shadow.answered_with() == {1}


def test_the_first_label_counts(shadow: Shadow) -> None:
    seq = shadow.record(X, answer(1, 0))
    shadow.compare(Always(2, 1), 1)
    shadow.label(seq, 0)
    shadow.label(seq, 1)
    assert shadow.pairs(2, Watch.SHADOW) == [Pair(seq, new_right=False, old_right=True)]


def test_a_tally_counts_all_pairs_and_tells_those_that_only_one_model_had_right(shadow: Shadow) -> None:
    for old, new, truth in ((0, 0, 0), (0, 1, 0), (1, 1, 0), (0, 1, 1), (0, 1, 0)):
        seq = shadow.record(X, answer(1, old))
        shadow.compare(Always(2, new), 1)
        shadow.label(seq, truth)
    shadow.record(X, answer(1, 0))  # nobody told the truth about it
    pairs = shadow.pairs(2, Watch.SHADOW)
    assert shadow.tally(2, Watch.SHADOW) == (5, [1, -1, 1]) == (len(pairs), [p.harm for p in pairs if p.harm])


@pytest.mark.parametrize(("seq", "label"), [(0, 2), (0, -1), (1, 0), (-1, 0)])
def test_a_label_of_no_class_or_no_request_is_refused(shadow: Shadow, seq: int, label: int) -> None:
    shadow.record(X, answer(1, 0))
    with pytest.raises(InputError):
        shadow.label(seq, label)


@pytest.mark.parametrize(
    ("old", "new", "truth", "harm"),
    [
        pytest.param(0, 0, 0, 0, id="both right"),
        pytest.param(0, 0, 1, 0, id="both wrong"),
        pytest.param(0, 1, 0, 1, id="only the new one wrong"),
        pytest.param(0, 1, 1, -1, id="only the old one wrong"),
    ],
)
@pytest.mark.parametrize("watch", list(Watch))
def test_a_pair_tells_which_model_was_right(
    shadow: Shadow, store: sqlite3.Connection, watch: Watch, old: int, new: int, truth: int, harm: int
) -> None:
    if watch is Watch.PROBATION:
        for stage in (Stage.STAGED, Stage.ADMITTED, Stage.SHADOW, Stage.PROBATION):
            StageLog(store).append(2, stage, "test")
    answers, rival = ((1, old), (2, new)) if watch is Watch.SHADOW else ((2, new), (1, old))
    seq = shadow.record(X, answer(*answers))
    shadow.compare(Always(*rival), answers[0])
    shadow.label(seq, truth)
    (pair,) = shadow.pairs(2, watch)
    assert pair.harm == harm
    assert (pair.new_right, pair.old_right) == (new == truth, old == truth)
    assert shadow.pairs(2, Watch.PROBATION if watch is Watch.SHADOW else Watch.SHADOW) == []


def test_the_rival_sees_what_was_asked(shadow: Shadow) -> None:
    rival = Always(2, 0)
    shadow.record(X, answer(1, 0))
    shadow.compare(rival, 1)
    np.testing.assert_array_equal(rival.seen, [X])


def test_a_window_without_label_is_no_evidence(shadow: Shadow) -> None:
    shadow.record(X, answer(1, 0))
    shadow.compare(Always(2, 0), 1)
    assert shadow.pairs(2, Watch.SHADOW) == []


def test_a_reading_is_forgotten_once_it_was_compared(shadow: Shadow, store: sqlite3.Connection) -> None:
    rival = Always(2, 0)
    shadow.record(X, answer(1, 0))
    shadow.compare(None, 1)
    shadow.record(X, answer(1, 0))
    shadow.compare(rival, 1)
    shadow.compare(rival, 1)
    assert len(rival.seen) == 1
    assert store.execute("select count(*) from reading where x is not null").fetchone() == (0,)


def test_a_rival_is_measured_against_the_model_that_answers_now_and_no_earlier_one(shadow: Shadow) -> None:
    rival = Always(3, 0)
    old, new = shadow.record(X, answer(1, 0)), shadow.record(X, answer(2, 0))
    shadow.compare(rival, 2)
    for seq in (old, new):
        shadow.label(seq, 0)
    assert [pair.seq for pair in shadow.pairs(3, Watch.SHADOW)] == [new]


def test_labelled_windows_are_those_that_are_compared_or_will_be(shadow: Shadow, store: sqlite3.Connection) -> None:
    def counted() -> tuple[int, int]:
        return shadow.labelled(2, Watch.SHADOW), shadow.labelled(2, Watch.PROBATION)

    def asked(request: str, release: int, watch: int | None) -> None:
        shadow.record_request(request, [Reading(X, answer(release, 0), watch)])
        shadow.teach(request, [0], Buffer(store, SIGNATURE, partition_size=9))

    for stage in (Stage.STAGED, Stage.ADMITTED, Stage.SHADOW):
        StageLog(store).append(2, stage, "test")
    asked("before the rival was there", 1, None)
    shadow.record_request("without a label", [Reading(X, answer(1, 0), 2)])
    assert counted() == (0, 0)
    asked("not compared yet", 1, 2)
    asked("of an answer by another model than the rival is measured against", 0, 2)
    assert counted() == (2, 0)
    shadow.compare(Always(2, 0), 1)
    assert counted() == (len(shadow.pairs(2, Watch.SHADOW)), 0) == (1, 0)
    StageLog(store).append(2, Stage.PROBATION, "test")
    asked("on probation", 2, 1)
    assert counted() == (1, 1)


def test_a_window_that_was_reported_is_evidence_no_more(shadow: Shadow, store: sqlite3.Connection) -> None:
    for _ in range(3):
        shadow.label(shadow.record(X, answer(1, 0)), 0)
    shadow.compare(Always(2, 0), 1)
    store.execute("update reading set report = 'shadow/2' where seq = 1")
    assert [pair.seq for pair in shadow.unreported(2, Watch.SHADOW)] == [0, 2]
    assert len(shadow.pairs(2, Watch.SHADOW)) == 3


def test_all_comparisons_of_a_step_are_one_transaction(shadow: Shadow, store: sqlite3.Connection) -> None:
    for _ in range(50):
        shadow.record(X, answer(1, 0))
    statements: list[str] = []
    store.set_trace_callback(statements.append)
    shadow.compare(Always(2, 1), 1)
    store.set_trace_callback(None)
    assert statements.index("begin immediate") < next(i for i, s in enumerate(statements) if s.startswith("update"))
    assert (statements.count("begin immediate"), statements.count("commit")) == (1, 1)
