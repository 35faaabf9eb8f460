"""The desk: it always answers, keeps what it can, and knows which readings are evidence and which are lessons."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet.errors import InputError, StoreError, TrustError
from fleet.messages import Watch
from fleet.release import Rollout
from node import recorder as recorder_module
from node.admission import admit
from node.buffer import Buffer
from node.desk import Desk
from node.predictor import Predictor
from node.promotion import Stage, StageLog
from node.serving import Serving
from node.shadow import REMEMBERED, UNLABELLED, Reading, Shadow
from node.slots import Slots
from node.store import open_store, transaction


@dataclass
class Pair:
    """Who answers and who watches, exchanged by hand."""

    active: Predictor | None = None
    rival: Predictor | None = None


class Counter:
    """A desk over real models, and a look into its store."""

    def __init__(self, folder: Path, toy: Any) -> None:
        self.toy = toy
        self.path = folder / "node.db"
        self.store = open_store(self.path)
        self.shadow = Shadow(self.store, toy.signature)
        self.models = Pair(self.predictor(1))
        self.desk = self.opened()

    def opened(self) -> Desk:
        return Desk(self.path, self.toy.signature, self.models, partition_size=3)

    def predictor(self, number: int) -> Predictor:
        return Predictor(number, self.toy.made(number)[1], self.toy.signature)

    def settle(self) -> None:
        """What the node's loop does between readings."""
        self.wait()
        self.shadow.compare(self.models.rival, self.models.active.release if self.models.active else 0)

    def wait(self) -> None:
        """Until what was answered so far is on the disk."""
        with pytest.raises(InputError, match="no answer"):
            self.desk.teach("no such request", [0])

    def examples(self) -> list[tuple[bytes, int]]:
        return self.store.execute("select x, y from example order by seq").fetchall()

    def rows(self, what: str) -> list[Any]:
        return [row[0] for row in self.store.execute(f"select {what} from reading order by seq")]  # noqa: S608


@pytest.fixture
def counter(tmp_path: Path, toy: Any) -> Iterator[Counter]:
    counter = Counter(tmp_path, toy)
    yield counter
    counter.desk.close()
    counter.store.close()


def test_a_request_is_answered_by_one_release_and_recorded(counter: Counter) -> None:
    points = counter.toy.points(5)
    reply = counter.desk.answer(points.x, "a")
    assert (reply.id, reply.release, reply.recorded) == ("a", 1, True)
    assert [one.label for one in reply.answers] == points.y.tolist()
    counter.wait()
    assert counter.rows("answer") == points.y.tolist()


def test_requests_without_a_name_get_one_each(counter: Counter) -> None:
    x = counter.toy.points(1).x
    assert len({counter.desk.answer(x).id for _ in range(100)}) == 100


def test_a_node_without_a_release_says_so(counter: Counter) -> None:
    counter.models.active = None
    with pytest.raises(TrustError, match="no release"):
        counter.desk.answer(counter.toy.points(1).x)


def test_a_bad_reading_is_refused_and_its_whole_request_is_not_kept(counter: Counter) -> None:
    x = counter.toy.points(2).x
    x[1, 0] = np.nan
    with pytest.raises(InputError, match="NaN"):
        counter.desk.answer(x, "a")
    counter.wait()
    assert counter.rows("seq") == []


def test_a_labelled_reading_that_nobody_watched_is_learned_from_once(counter: Counter) -> None:
    x = counter.toy.points(1).x
    counter.desk.answer(x, "a")
    assert counter.desk.teach("a", [1]) == 1
    assert counter.desk.teach("a", [0]) == 0
    assert counter.examples() == [(x.tobytes(), 1)]
    assert counter.rows("label") == [1]
    assert counter.rows("x") == [None]


@pytest.mark.parametrize("labelled_first", [True, False])
@pytest.mark.parametrize("probation", [False, True])
def test_a_reading_that_a_rival_watched_is_evidence_and_never_a_lesson(
    counter: Counter, labelled_first: bool, probation: bool
) -> None:
    two = counter.predictor(2)
    counter.models.rival = two
    if probation:
        for stage in (Stage.STAGED, Stage.ADMITTED, Stage.SHADOW, Stage.PROBATION):
            StageLog(counter.store).append(2, stage, "test")
        counter.models.active, counter.models.rival = two, counter.models.active
    counter.desk.answer(counter.toy.points(2).x, "a")
    steps: list[Callable[[], Any]] = [lambda: counter.desk.teach("a", [0, 1]), counter.settle]
    for step in steps if labelled_first else reversed(steps):
        step()
    counter.models.rival = None  # later it is gone; what it watched stays evidence
    counter.settle()
    assert counter.desk.teach("a", [1, 1]) == 0
    assert counter.examples() == []
    pairs = counter.shadow.pairs(2, Watch.PROBATION if probation else Watch.SHADOW)
    assert [pair.seq for pair in pairs] == [0, 1]


def test_a_reading_that_was_answered_before_the_rival_was_there_is_no_evidence(counter: Counter) -> None:
    counter.desk.answer(counter.toy.points(1).x, "before")
    counter.models.rival = counter.predictor(2)
    counter.settle()
    assert counter.desk.teach("before", [1]) == 1
    assert counter.rows("rival") == [None]
    assert len(counter.examples()) == 1


def test_a_reading_that_another_rival_watched_is_shown_to_no_other_and_not_learned_from(counter: Counter) -> None:
    counter.models.rival = counter.predictor(2)
    counter.desk.answer(counter.toy.points(1).x, "a")
    counter.models.rival = counter.predictor(3)
    counter.settle()
    counter.desk.teach("a", [1])
    assert counter.rows("rival") == [None]
    assert counter.examples() == []


def test_a_rival_sees_a_reading_once(counter: Counter) -> None:
    counter.models.rival = counter.predictor(2)
    counter.desk.answer(counter.toy.points(1).x, "a")
    counter.settle()
    counter.store.execute("update reading set rival_answer = 7")
    counter.settle()
    assert counter.rows("rival_answer") == [7]


def test_lessons_of_a_batch_keep_their_order_and_fill_partitions(counter: Counter) -> None:
    points = counter.toy.points(5)
    counter.desk.answer(points.x, "a")
    assert counter.desk.teach("a", points.y.tolist()) == 5
    assert counter.examples() == [(x.tobytes(), int(y)) for x, y in zip(points.x, points.y, strict=True)]
    assert Buffer(counter.store, counter.toy.signature, partition_size=3).partitions() == [0, 1]


def test_labels_are_for_the_newest_request_of_a_name(counter: Counter) -> None:
    for count in (2, 1):
        counter.desk.answer(counter.toy.points(count).x, "a")
    counter.desk.teach("a", [1])
    assert counter.rows("label") == [None, None, 1]


@pytest.mark.parametrize(
    ("request_", "labels", "says"),
    [
        ("b", [0], "no answer 'b'"),
        ("a", [0], "1, the request 'a' had 2"),
        ("a", [0, 2], "label 2"),
        ("a", [], "0, the"),
    ],
)
def test_a_label_that_fits_no_request_changes_nothing(
    counter: Counter, request_: str, labels: list[int], says: str
) -> None:
    counter.desk.answer(counter.toy.points(2).x, "a")
    with pytest.raises(InputError, match=says):
        counter.desk.teach(request_, labels)
    assert counter.rows("label") == [None, None]
    assert counter.examples() == []


def test_labels_find_their_request_after_a_restart(counter: Counter) -> None:
    counter.desk.answer(counter.toy.points(1).x, "a")
    counter.desk.close()
    counter.desk = counter.opened()
    assert counter.desk.teach("a", [1]) == 1


def test_only_the_newest_unlabelled_readings_keep_their_values(store: sqlite3.Connection, toy: Any) -> None:
    shadow, x = Shadow(store, toy.signature), toy.points(1).x[0]
    answer = Predictor(1, toy.made(1)[1], toy.signature).answer(x)
    with transaction(store):
        for _ in range(UNLABELLED + 5):
            shadow.record_request("a", [Reading(x, answer, None)])
        shadow.forget()
    kept = [row[0] for row in store.execute("select seq from reading where x is not null order by seq")]
    assert kept == list(range(5, UNLABELLED + 5))


def test_what_no_label_can_find_any_more_is_removed_but_evidence_stays(store: sqlite3.Connection, toy: Any) -> None:
    shadow = Shadow(store, toy.signature)
    values = "insert into reading (seq, release, answer, rival, rival_answer, label) values (?, 1, 0, ?, 0, ?)"
    store.executemany(values, [(0, 2, 1), (1, None, 1), (2, 2, None), (REMEMBERED + 1, None, None)])
    shadow.forget()
    assert [row[0] for row in store.execute("select seq from reading order by seq")] == [0, 2, REMEMBERED + 1]
    store.execute("update reading set seq = seq + 1 where seq > 2")
    shadow.forget()
    assert [row[0] for row in store.execute("select seq from reading order by seq")] == [0, REMEMBERED + 2]


def test_evidence_stays_until_a_newer_release_is_on_the_node(store: sqlite3.Connection, toy: Any) -> None:
    shadow, stages = Shadow(store, toy.signature), StageLog(store)
    values = "insert into reading (seq, release, answer, rival, rival_answer, label) values (?, ?, 0, ?, 0, ?)"
    store.executemany(values, [(0, 1, 2, 1), (1, 2, 1, 1), (2, 2, 3, 1), (REMEMBERED + 3, 1, None, None)])
    for release, left in ((2, [0, 1, 2]), (3, [2])):
        stages.append(release, Stage.STAGED, "test")
        shadow.forget()
        assert [row[0] for row in store.execute("select seq from reading where label is not null")] == left


def test_I11_a_locked_store_stops_no_answer_and_is_counted(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "_BUSY_MS", 50)
    counter.desk.close()
    counter.desk = counter.opened()
    x = counter.toy.points(1).x
    counter.store.execute("begin immediate")
    replies = [counter.desk.answer(x, "lost") for _ in range(20)]
    with pytest.raises(StoreError, match="locked"):
        counter.desk.teach("lost", [1])
    counter.store.execute("rollback")
    assert [reply.release for reply in replies] == [1] * 20
    assert counter.desk.metrics.unrecorded == 20
    counter.desk.answer(x, "kept")
    assert counter.desk.teach("kept", [1]) == 1


def test_I11_a_full_disk_stops_no_answer_and_is_counted(counter: Counter) -> None:
    recorder = counter.desk._recorder
    counter.wait()
    recorder._store.execute(f"pragma max_page_count={recorder._store.execute('pragma page_count').fetchone()[0]}")
    points = counter.toy.points(900)
    assert counter.desk.answer(points.x, "lost").recorded
    with pytest.raises(StoreError, match="full"):
        counter.desk.teach("lost", [0] * 900)
    assert counter.desk.metrics.unrecorded == 900
    recorder._store.execute("pragma max_page_count=1000000")
    counter.desk.answer(points.x[:1], "kept")
    assert counter.desk.teach("kept", [1]) == 1
    assert counter.rows("seq") == [0]


def test_readings_beyond_what_may_wait_are_answered_and_not_kept(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "CAPACITY", 3)
    monkeypatch.setattr(recorder_module, "LINGER_S", 0.3)
    x = counter.toy.points(4).x
    assert counter.desk.answer(x, "alone").recorded
    reply = counter.desk.answer(x[:1], "beyond")
    assert (len(reply.answers), reply.recorded) == (1, False)
    assert counter.desk.metrics.unrecorded == 1
    with pytest.raises(InputError, match="no answer"):
        counter.desk.teach("beyond", [0])
    assert counter.desk.teach("alone", [0] * 4) == 4


def test_eight_threads_are_answered_while_releases_are_promoted(tmp_path: Path, toy: Any) -> None:
    """Real promotions through shadow and probation, on the evidence of the requests that run meanwhile."""
    store = open_store(tmp_path / "node.db")
    shadow, stages = Shadow(store, toy.signature), StageLog(store)
    serving = Serving(
        "n1",
        toy.signature,
        stages=stages,
        slots=Slots(tmp_path / "slots"),
        shadow=shadow,
        admit=admit,
        record=lambda event, **fields: None,
    )
    toy.put(1)
    serving.provision(toy, 1)
    desk = Desk(tmp_path / "node.db", toy.signature, serving, partition_size=100)
    stop, errors, served = threading.Event(), [], set()

    def ask(seed: int) -> None:
        points = toy.points(50, seed)
        try:
            while not stop.is_set():
                for i in range(50):
                    reply = desk.answer(points.x[i : i + 1], f"{seed}-{i}")
                    assert reply.answers[0].label == points.y[i]
                    served.add(reply.release)
                    if i % 10 == 0 and reply.recorded:
                        desk.teach(reply.id, [int(points.y[i])])
        except Exception as error:  # noqa: BLE001 - whatever it is, the test says it
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for number in (2, 3, 4):
        toy.put(number)
        rollout = Rollout(number, "salt", "f" * 64)
        serving.consider(rollout, toy)
        deadline = time.monotonic() + 30
        while stages.stage(number) is not Stage.COMMITTED and time.monotonic() < deadline:
            serving.settle(rollout)
            time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join()
    desk.close()
    evidence = "select count(*) from reading where rival is not null and lesson"
    assert (errors, stages.stage(4), served >= {1, 4}) == ([], Stage.COMMITTED, True)
    assert store.execute(evidence).fetchone() == (0,)
    store.close()
