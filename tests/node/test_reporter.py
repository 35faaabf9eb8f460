"""Reports: charged first, noisy, over windows that are in no other report."""

import math
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fleet.messages import Report, ReportInstruction, Watch
from fleet.privacy.gaussian import Budget
from fleet.privacy.noise import LatticeGaussian
from fleet.privacy.release import Noise
from fleet.signing import Sealed, unseal
from fleet.task import Signature
from node.ledger import Ledger
from node.reporter import Reporter
from node.shadow import Shadow
from node.store import open_store

BUDGET = Budget(8.0, 1e-5)


class Known:
    """Noise that is known, for once, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, float]] = []

    def integers(self, size: int, std: float) -> npt.NDArray[np.int64]:
        self.asked.append((size, std))
        return np.array([100, 200], np.int64)


class Node:
    """A reporter over a store, with live windows on demand."""

    def __init__(self, path: Path, key: Ed25519PrivateKey, noise: Noise, budget: Budget = BUDGET) -> None:
        self.store = open_store(path)
        self.ledger = Ledger(self.store, budget)
        self.shadow = Shadow(self.store, Signature("x", (2,), -1.0, 1.0, ("left", "right")))
        self.reporter = Reporter(self.store, self.ledger, self.shadow, noise, node="n1", key=key)
        self.key = key

    def see(self, *harms: int, release: int = 2) -> None:
        """Live windows on which ``release`` shadowed release 1: +1 only the new one wrong, -1 only the old."""
        for harm in harms:
            old_right, new_right = harm >= 0, harm <= 0
            self.store.execute(
                "insert into reading (seq, release, answer, rival, rival_answer, label) values (?, 1, ?, ?, ?, 1)",
                (self.shadow.next_seq(), int(old_right), release, int(new_right)),
            )

    def read(self, sealed: Sealed | None) -> Report:
        assert sealed is not None
        return Report.of(unseal("report", sealed, self.key.public_key()))

    def used(self) -> list[int]:
        return [row[0] for row in self.store.execute("select seq from reading where report is not null order by seq")]


def ask(release: int = 2, watch: Watch = Watch.SHADOW, quota: int = 3) -> ReportInstruction:
    return ReportInstruction("toy", datetime(2027, 1, 1, tzinfo=UTC), release=release, watch=watch, quota=quota)


@pytest.fixture
def node(tmp_path: Path, key: Ed25519PrivateKey) -> Node:
    return Node(tmp_path / "node.db", key, Known())


def test_a_report_counts_the_windows_of_its_quota_and_adds_noise(node: Node) -> None:
    node.see(1, 1, -1, -1, -1)
    report = node.read(node.reporter.answer(ask(quota=4)))
    assert (report.won, report.lost) == (100 + 2, 200 + 2)
    assert (report.node, report.task, report.release, report.watch, report.quota) == ("n1", "toy", 2, Watch.SHADOW, 4)
    assert (report.ledger_seq, report.ledger_head) == (1, node.ledger.head().hash)


def test_there_is_no_report_below_the_quota_and_nothing_changes(node: Node) -> None:
    node.see(1, 1)
    before = list(node.store.iterdump())
    assert node.reporter.answer(ask(quota=3)) is None
    assert list(node.store.iterdump()) == before


@pytest.mark.parametrize("quota", [0, -1])
def test_a_quota_of_nothing_is_never_reached(node: Node, quota: int) -> None:
    node.see(1, 1)
    assert node.reporter.answer(ask(quota=quota)) is None
    assert node.ledger.head().seq == 0


def test_the_same_bytes_however_often_they_are_asked_for(node: Node, tmp_path: Path, key: Ed25519PrivateKey) -> None:
    node.see(1, 0, -1, 1)
    first = node.reporter.answer(ask())
    node.see(1, 1, 1, 1)
    assert first is not None
    assert node.reporter.answer(ask(quota=4)) == first
    restarted = Node(tmp_path / "node.db", key, LatticeGaussian())
    assert restarted.reporter.answer(ask()) == first
    assert restarted.ledger.head().seq == 1


def test_a_window_is_in_one_report_only(node: Node) -> None:
    """A live window is in one report only."""
    node.see(1, 1, 1)
    assert node.reporter.answer(ask()) is not None
    # The same windows offered again for another release: as if it, too, had answered on them.
    node.store.execute("update reading set rival = 3")
    assert node.reporter.answer(ask(release=3)) is None
    node.see(-1, -1, -1, release=3)
    report = node.read(node.reporter.answer(ask(release=3)))
    assert (report.won, report.lost) == (100 + 3, 200)
    assert node.used() == [0, 1, 2, 3, 4, 5]


def test_I4_a_report_is_charged_durably_before_it_leaves_the_node(tmp_path: Path, key: Ed25519PrivateKey) -> None:
    def on_disk() -> tuple[int, int]:
        with closing(sqlite3.connect(tmp_path / "node.db")) as other:
            query = "select (select count(*) from charge), (select count(*) from report)"
            charges, reports = other.execute(query).fetchone()
            return charges, reports

    class Checking(Known):
        def integers(self, size: int, std: float) -> npt.NDArray[np.int64]:
            assert on_disk() == (0, 0)
            return super().integers(size, std)

    noise = Checking()
    node = Node(tmp_path / "node.db", key, noise)
    node.see(1, 0, 0)
    assert node.reporter.answer(ask()) is not None
    assert on_disk() == (1, 1)
    assert node.ledger.charges() == [("live/shadow/2", node.ledger.budget.cap_mu2)]
    assert noise.asked == [(2, BUDGET.report_noise)]


def test_a_report_spends_the_budget_of_its_windows_and_no_more(node: Node) -> None:
    node.see(1, 0, 0)
    node.reporter.answer(ask())
    assert 7.999 < node.ledger.epsilon("live/shadow/2") <= 8.0
    assert node.ledger.epsilon("live/probation/2") == 0


def test_I4_a_node_killed_at_any_statement_of_a_report_charges_once_and_gives_it_once(
    tmp_path: Path, key: Ed25519PrivateKey
) -> None:
    """What a killed process leaves is its files as they are at that moment: the store is copied at every statement."""
    node = Node(tmp_path / "node.db", key, Known())
    node.see(1, 0, 0, 1, 1, 1)
    left: list[Path] = []

    def leave(statement: str) -> None:
        left.append(tmp_path / f"killed-{len(left)}")
        left[-1].mkdir()
        for path in tmp_path.glob("node.db*"):
            shutil.copy(path, left[-1])

    node.store.set_trace_callback(leave)
    given = node.reporter.answer(ask())
    node.store.set_trace_callback(None)
    assert len(left) > 8
    drawn = []
    for folder in left:
        noise = Known()
        restarted = Node(folder / "node.db", key, noise)
        done = restarted.ledger.head().seq == 1
        assert restarted.used() == ([0, 1, 2] if done else []), "both or neither"
        assert restarted.reporter.answer(ask()) == restarted.reporter.answer(ask()) == given
        drawn.append(len(noise.asked))
        assert drawn[-1] == (0 if done else 1)
        assert restarted.ledger.charges() == node.ledger.charges()
        assert restarted.used() == [0, 1, 2]
        restarted.store.close()
    assert {drawn[0], drawn[-1]} == {1, 0}, "killed before, and after"


def test_without_a_promise_the_counts_are_exact(tmp_path: Path, key: Ed25519PrivateKey) -> None:
    noise = Known()
    node = Node(tmp_path / "node.db", key, noise, Budget(math.inf, 1e-5))
    node.see(1, 1, -1)
    report = node.read(node.reporter.answer(ask()))
    assert (report.won, report.lost, noise.asked) == (1, 2, [])
