"""How many bytes a metered link may still carry today."""

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.errors import AllowanceError
from node.allowance import Allowance
from node.store import open_store

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


def test_when_the_bytes_of_a_day_are_used_up_nothing_more_is_carried_until_tomorrow(store: sqlite3.Connection) -> None:
    clock = Clock()
    allowance = Allowance(store, 1000, clock)
    for _ in range(10):
        allowance.spend(100)
    with pytest.raises(AllowanceError, match="1000 bytes"):
        allowance.spend(1)
    clock.now += timedelta(hours=12)
    allowance.spend(1000)


def test_what_is_too_much_at_once_is_not_carried_and_costs_nothing(store: sqlite3.Connection) -> None:
    allowance = Allowance(store, 1000, Clock())
    with pytest.raises(AllowanceError):
        allowance.spend(1001)
    allowance.spend(1000)


def test_an_unmetered_link_writes_nothing(store: sqlite3.Connection) -> None:
    before = store.total_changes
    allowance = Allowance(store, None, Clock())
    allowance.spend(10**15)
    assert store.total_changes == before


def test_a_day_seen_twice_by_a_clock_that_went_back_is_not_granted_twice(store: sqlite3.Connection) -> None:
    clock = Clock()
    allowance = Allowance(store, 1000, clock)
    allowance.spend(1000)
    clock.now += timedelta(days=1)
    allowance.spend(1)
    clock.now = NOON
    with pytest.raises(AllowanceError):
        allowance.spend(1)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 40_000), max_size=60), st.integers(1, 500_000), st.data())
def test_restarts_and_a_second_process_never_grant_a_byte(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], limit: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("store") / "node.db"
    stores = [open_store(path), open_store(path)]
    drawers = [Allowance(store, limit, Clock()) for store in stores]
    carried = 0
    for count in counts:
        who = data.draw(st.integers(0, 1))
        if data.draw(st.booleans()):  # it crashed, and was started again
            drawers[who] = Allowance(stores[who], limit, Clock())
        try:
            drawers[who].spend(count)
        except AllowanceError:
            continue
        carried += count
    assert carried <= limit
    for store in stores:
        store.close()


def test_a_restart_wastes_less_than_a_fiftieth_of_the_day(tmp_path: Path) -> None:
    store = open_store(tmp_path / "node.db")
    Allowance(store, 1_000_000, Clock()).spend(1)
    Allowance(store, 1_000_000, Clock()).spend(980_000)
    store.close()


def test_days_long_gone_are_forgotten(store: sqlite3.Connection) -> None:
    clock = Clock()
    allowance = Allowance(store, 1000, clock)
    for _ in range(100):
        allowance.spend(1)
        clock.now += timedelta(days=1)
    assert store.execute("select count(*) from traffic").fetchone()[0] <= 31
