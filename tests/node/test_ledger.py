"""The ledger: spent first, never more than the budget, never undone, whatever crashes."""

import math
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from dp_accounting import get_epsilon_gaussian
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.errors import BudgetError, TamperedError
from fleet.privacy.gaussian import Budget, charge_of
from fleet.signing import canonical, sha256
from node.ledger import GENESIS, Head, Ledger
from node.store import open_store

BUDGET = Budget(8.0, 1e-5)
NOISE = BUDGET.noise_multiplier(10)

CHARGE_FOR_EVER = """
import sys
from pathlib import Path
from fleet.privacy.gaussian import Budget
from node.ledger import Ledger
from node.store import open_store

ledger = Ledger(open_store(Path(sys.argv[1])), Budget(float("inf"), 1e-5))
with open(sys.argv[2], "a", buffering=1) as released:
    print("ready", flush=True)
    while True:
        ledger.charge("train/0", noise_multiplier=0.0, releases=1, purpose="session")
        released.write(f"{ledger.head().seq}\\n")
"""


def charge(ledger: Ledger, partition: str = "train/0", releases: int = 1) -> int:
    return ledger.charge(partition, noise_multiplier=NOISE, releases=releases, purpose="session")


def rows(store: sqlite3.Connection) -> list[tuple[object, ...]]:
    return store.execute("select * from charge order by seq").fetchall()


def test_a_charge_past_the_budget_is_refused_and_records_nothing(store: sqlite3.Connection) -> None:
    ledger = Ledger(store, BUDGET)
    charge(ledger, releases=9)
    before = rows(store)
    with pytest.raises(BudgetError, match=r"train/0: epsilon 7\.\d+ of 8 is spent"):
        charge(ledger, releases=2)
    assert rows(store) == before
    charge(ledger)
    with pytest.raises(BudgetError, match="of 8 is spent"):
        charge(ledger)
    assert 7.999 < ledger.epsilon("train/0") <= 8.0


def test_each_partition_has_a_budget_of_its_own_and_the_node_spent_what_the_worst_did(
    store: sqlite3.Connection,
) -> None:
    ledger = Ledger(store, BUDGET)
    charge(ledger, "train/0", releases=10)
    charge(ledger, "train/1", releases=3)
    assert ledger.epsilon() == ledger.epsilon("train/0") > ledger.epsilon("train/1") > 0
    assert ledger.epsilon("train/2") == 0


def test_charges_are_listed_as_they_were_made(store: sqlite3.Connection) -> None:
    ledger = Ledger(store, BUDGET)
    costs = [charge(ledger, "train/1"), charge(ledger, "live/x"), charge(ledger, "train/1", releases=2)]
    assert ledger.charges() == list(zip(["train/1", "live/x", "train/1"], costs, strict=True))


def test_a_charge_covers_all_releases_of_a_session(store: sqlite3.Connection) -> None:
    assert charge(Ledger(store, BUDGET), releases=3) == 3 * charge_of(NOISE)


def test_a_restart_spends_nothing_and_forgets_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path / "node.db")
    ledger = Ledger(store, BUDGET)
    charge(ledger, releases=10)
    head = ledger.head()
    store.close()
    store = open_store(tmp_path / "node.db")
    again = Ledger(store, BUDGET)
    assert again.head() == head
    with pytest.raises(BudgetError):
        charge(again)
    store.close()


@pytest.mark.parametrize("noise_multiplier", [0.0, -0.5, math.nan])
def test_I4_a_release_without_noise_cannot_be_charged_to_a_private_budget(
    store: sqlite3.Connection, noise_multiplier: float
) -> None:
    with pytest.raises(ValueError, match="noise_multiplier"):
        Ledger(store, BUDGET).charge("train/0", noise_multiplier=noise_multiplier, releases=1, purpose="session")
    assert rows(store) == []


@pytest.mark.parametrize("releases", [0, -1])
def test_I4_a_charge_cannot_give_anything_back(store: sqlite3.Connection, releases: int) -> None:
    ledger = Ledger(store, BUDGET)
    charge(ledger)
    with pytest.raises(ValueError, match="releases"):
        charge(ledger, releases=releases)
    assert len(rows(store)) == 1


def test_where_nothing_is_promised_a_release_is_on_record_all_the_same(store: sqlite3.Connection) -> None:
    ledger = Ledger(store, Budget(math.inf, 1e-5))
    assert ledger.epsilon() == 0.0
    ledger.charge("train/0", noise_multiplier=0.0, releases=2, purpose="session")
    assert ledger.epsilon() == math.inf
    assert ledger.head().seq == 1


def test_I4_the_recorded_epsilon_after_200_charges_is_that_of_an_independent_accountant(
    store: sqlite3.Connection,
) -> None:
    ledger = Ledger(store, BUDGET)
    noise = BUDGET.noise_multiplier(200)
    for _ in range(200):
        ledger.charge("train/0", noise_multiplier=noise, releases=1, purpose="session")
    exact = get_epsilon_gaussian(noise / math.sqrt(200), 1e-5)
    assert ledger.epsilon("train/0") == pytest.approx(exact, abs=1e-6)
    assert exact - 1e-9 <= ledger.epsilon("train/0") <= 8.0
    with pytest.raises(BudgetError):
        ledger.charge("train/0", noise_multiplier=noise, releases=1, purpose="session")


@given(st.lists(st.tuples(st.floats(0.3, 50), st.integers(1, 5)), max_size=12))
@settings(max_examples=20)
def test_I4_the_recorded_cost_is_never_below_the_true_one_nor_above_the_budget(
    tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[float, int]]
) -> None:
    store = open_store(tmp_path_factory.mktemp("ledger") / "node.db")
    try:
        ledger, true = Ledger(store, BUDGET), 0.0
        for noise, releases in plan:
            try:
                ledger.charge("train/0", noise_multiplier=noise, releases=releases, purpose="session")
            except BudgetError:
                continue
            true += releases / noise**2
        assert true * (1 - 1e-12) <= ledger.spent_mu2("train/0") / 1e12
        assert ledger.epsilon("train/0") <= 8.0
    finally:
        store.close()


@pytest.mark.parametrize(
    "tamper",
    [
        pytest.param("update charge set mu2 = 1 where seq = 2", id="a charge made smaller"),
        pytest.param("update charge set partition = 'train/9' where seq = 2", id="moved to another partition"),
        pytest.param("update charge set purpose = 'test' where seq = 3", id="called something else"),
        pytest.param("delete from charge where seq = 2", id="one deleted"),
        pytest.param("delete from charge where seq = 1", id="the first deleted"),
        pytest.param(
            "update charge set seq = 9 where seq = 2; update charge set seq = 2 where seq = 3;"
            "update charge set seq = 3 where seq = 9",
            id="two swapped",
        ),
        pytest.param(
            "delete from charge where seq = 2; update charge set seq = seq - 1 where seq > 2", id="the gap closed"
        ),
        pytest.param("update charge set hash = 'f' where seq = 3", id="a hash replaced"),
        pytest.param("update charge set seq = seq + 1 where seq = 3", id="the last one numbered up"),
    ],
)
def test_a_ledger_that_was_altered_is_not_opened(store: sqlite3.Connection, tamper: str) -> None:
    ledger = Ledger(store, BUDGET)
    for _ in range(3):
        charge(ledger)
    store.executescript(f"drop trigger charge_kept; drop trigger charge_stays; {tamper}")
    with pytest.raises(TamperedError, match="ledger: charge"):
        Ledger(store, BUDGET)


def test_a_charge_that_skips_a_number_is_not_followed_even_if_its_hash_is_right(store: sqlite3.Connection) -> None:
    charge(ledger := Ledger(store, BUDGET))
    row = (3, "train/0", "session", 1, ledger.head().hash)
    store.execute("insert into charge values (?, ?, ?, ?, ?, ?)", (*row, sha256(canonical(list(row)))))
    with pytest.raises(TamperedError, match="charge 3 does not follow charge 1"):
        Ledger(store, BUDGET)


@pytest.mark.parametrize(
    "statement",
    [
        "update charge set mu2 = 1",
        "delete from charge",
        "insert or replace into charge select 1, 'x', 'x', 1, 'x', 'x'",
    ],
)
def test_the_database_itself_refuses_to_rewrite_a_charge(store: sqlite3.Connection, statement: str) -> None:
    charge(Ledger(store, BUDGET))
    before = rows(store)
    with pytest.raises(sqlite3.IntegrityError, match="append only"):
        store.execute(statement)
    assert rows(store) == before


def test_a_restored_backup_lacks_the_heads_that_came_after_it(store: sqlite3.Connection) -> None:
    ledger = Ledger(store, BUDGET)
    heads = [ledger.head()]
    for _ in range(3):
        charge(ledger)
        heads.append(ledger.head())
    assert all(ledger.contains(head) for head in heads)
    store.executescript("drop trigger charge_stays; delete from charge where seq = 3")  # the chain alone cannot tell
    restored = Ledger(store, BUDGET)
    assert [restored.contains(head) for head in heads] == [True, True, True, False]


@pytest.mark.parametrize("head", [Head(0, "f" * 64), Head(1, GENESIS), Head(7, GENESIS)])
def test_a_head_of_another_ledger_is_not_in_this_one(store: sqlite3.Connection, head: Head) -> None:
    ledger = Ledger(store, BUDGET)
    charge(ledger)
    assert not ledger.contains(head)


def test_the_ledger_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    open_store(tmp_path / "node.db").close()
    assert (tmp_path / "node.db").stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_no_database_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "node.db").write_bytes(b"not a database" * 100)
    with pytest.raises(TamperedError, match="cannot be read as a node's store"):
        open_store(tmp_path / "node.db")
    assert (tmp_path / "node.db").read_bytes() == b"not a database" * 100


def test_a_charge_is_flushed_to_the_disk_when_it_returns(store: sqlite3.Connection) -> None:
    assert store.execute("pragma synchronous").fetchone() == (2,)  # FULL
    assert store.execute("pragma journal_mode").fetchone() == ("wal",)
    charge(Ledger(store, BUDGET))
    assert not store.in_transaction


@pytest.mark.slow
def test_I4_a_node_killed_at_any_moment_never_released_what_it_did_not_charge(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    released = tmp_path / "released"
    for kill in range(10):
        with subprocess.Popen(
            [sys.executable, "-c", CHARGE_FOR_EVER, str(tmp_path / "node.db"), str(released)],
            stdout=subprocess.PIPE,
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(rng.uniform(0.01, 0.15))
            child.kill()
        store = open_store(tmp_path / "node.db")
        charged = {row[0] for row in rows(store)}
        Ledger(store, Budget(math.inf, 1e-5))  # the chain holds
        store.close()
        lines = [int(line) for line in released.read_text().split()]
        assert len(lines) == len(set(lines)) > kill
        assert set(lines) <= charged
        assert len(charged) - len(lines) <= kill + 1
