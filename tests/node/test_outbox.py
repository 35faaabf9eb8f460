"""The outbox: one session, one round, the same bytes for ever."""

import sqlite3
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fleet.messages import CODEC, Update, UpdateInstruction, decode, update_key
from fleet.privacy.gaussian import Budget
from fleet.signing import sha256, unseal
from node.ledger import Ledger
from node.outbox import Outbox, Parcel
from node.store import open_store
from tests.power_cut import PowerCut

DELTA = np.array([1, -2, 3], np.float32)


def ask(round_: int, base: int = 5) -> UpdateInstruction:
    return UpdateInstruction("toy", datetime(2027, 1, 1, tzinfo=UTC), round=round_, base=base, base_digest=f"d{base}")


def open_outbox(store: sqlite3.Connection, key: Ed25519PrivateKey) -> Outbox:
    return Outbox(store, Ledger(store, Budget(8.0, 1e-5)), node="n1", key=key)


def fields(parcel: Parcel | None, key: Ed25519PrivateKey) -> Update:
    assert parcel is not None
    return Update.of(unseal("update", parcel.sealed, key.public_key()))


@pytest.fixture
def outbox(store: sqlite3.Connection, key: Ed25519PrivateKey) -> Outbox:
    return open_outbox(store, key)


def put(outbox: Outbox, base: int = 5, delta: np.ndarray = DELTA) -> None:
    outbox.put(delta, 11, base=base, base_digest=f"d{base}")


def test_an_update_says_what_it_is(outbox: Outbox, store: sqlite3.Connection, key: Ed25519PrivateKey) -> None:
    ledger = Ledger(store, Budget(8.0, 1e-5))
    ledger.charge("train/0", noise_multiplier=5.0, releases=1, purpose="session")
    put(outbox)
    parcel = outbox.answer(ask(7), max_staleness=3)
    assert parcel is not None
    assert fields(parcel, key) == Update(
        node="n1",
        task="toy",
        round=7,
        base=5,
        base_digest="d5",
        key=update_key("n1", "toy", 7, "d5"),
        codec=CODEC,
        payload_digest=sha256(parcel.payload),
        spent_mu2=11,
        ledger_seq=1,
        ledger_head=ledger.head().hash,
    )
    np.testing.assert_array_equal(decode(parcel.payload, 3), DELTA)


def test_the_same_bytes_however_often_they_are_asked_for(
    tmp_path: Path, outbox: Outbox, store: sqlite3.Connection, key: Ed25519PrivateKey
) -> None:
    put(outbox)
    first = outbox.answer(ask(7), max_staleness=3)
    put(outbox, base=6)
    Ledger(store, Budget(8.0, 1e-5)).charge("train/0", noise_multiplier=5.0, releases=1, purpose="session")
    assert first is not None
    assert outbox.answer(ask(7, base=6), max_staleness=0) == first
    again = open_store(tmp_path / "node.db")
    assert open_outbox(again, key).answer(ask(7), max_staleness=3) == first
    again.close()


def test_nothing_yet_touches_nothing(outbox: Outbox, store: sqlite3.Connection) -> None:
    put(outbox, base=1)
    changes, before = store.total_changes, list(store.iterdump())
    assert outbox.answer(ask(7), max_staleness=3) is None
    assert (store.total_changes, list(store.iterdump())) == (changes, before)
    assert not outbox.answered(7)


def test_I1_a_session_is_bound_to_one_round_only(outbox: Outbox, key: Ed25519PrivateKey) -> None:
    put(outbox)
    assert outbox.answer(ask(7), max_staleness=3) is not None
    assert outbox.answer(ask(8), max_staleness=3) is None
    put(outbox, delta=2 * DELTA)
    keys = {fields(outbox.answer(ask(round_), max_staleness=3), key).key for round_ in (7, 8)}
    assert len(keys) == 2


def test_I1_the_database_itself_refuses_two_sessions_for_a_round(outbox: Outbox, store: sqlite3.Connection) -> None:
    put(outbox)
    put(outbox)
    outbox.answer(ask(7), max_staleness=3)
    with pytest.raises(sqlite3.IntegrityError):
        store.execute("update session set round = 7")


@pytest.mark.parametrize(
    ("base", "offered"),
    [
        pytest.param(5, True, id="the base asked for"),
        pytest.param(2, True, id="as old as may be"),
        pytest.param(1, False, id="too old"),
    ],
)
def test_a_stale_session_is_not_offered(outbox: Outbox, base: int, offered: bool) -> None:
    put(outbox, base=base)
    assert (outbox.answer(ask(7, base=5), max_staleness=3) is not None) == offered


def test_the_freshest_session_is_offered_first(outbox: Outbox, key: Ed25519PrivateKey) -> None:
    for base in (3, 5, 4):
        put(outbox, base=base)
    offered = [fields(outbox.answer(ask(round_), max_staleness=3), key).base for round_ in (7, 8, 9)]
    assert offered == [5, 4, 3]


def test_a_session_that_was_bound_waits_no_longer(outbox: Outbox) -> None:
    put(outbox)
    assert (outbox.waiting(5), outbox.waiting(4), outbox.sizes()) == (True, False, [])
    parcel = outbox.answer(ask(7), max_staleness=3)
    assert parcel is not None
    assert (outbox.waiting(5), outbox.answered(7)) == (False, True)
    assert outbox.sizes() == [len(parcel.sealed.body) + len(parcel.sealed.signature) + 12]


def test_an_update_that_cannot_be_signed_leaves_its_session_waiting(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: object) -> None:
        raise PowerCut

    put(outbox)
    with monkeypatch.context() as patch:
        patch.setattr(Update, "sealed", cut)
        with pytest.raises(PowerCut):
            outbox.answer(ask(7), max_staleness=3)
    assert outbox.waiting(5)
    assert not outbox.answered(7)


def test_another_task_s_name_gives_another_key(outbox: Outbox, key: Ed25519PrivateKey) -> None:
    put(outbox)
    asked = replace(ask(7), task="other")
    assert fields(outbox.answer(asked, max_staleness=3), key).key == update_key("n1", "other", 7, "d5")
