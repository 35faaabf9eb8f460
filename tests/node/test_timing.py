"""When a node talks next."""

import heapq
import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import timing
from node.timing import Pace, backoff, retry_after, until_tomorrow

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
chances = st.floats(0, 1, exclude_max=True)


@given(st.integers(1, 10_000), chances)
def test_a_retry_waits_between_the_half_and_the_whole_of_a_doubling_step(failures: int, chance: float) -> None:
    step = min(timing.CAP_S, timing.FLOOR_S * 2 ** min(failures, 16))
    assert timing.FLOOR_S <= step / 2 <= backoff(failures, chance) <= step <= timing.CAP_S


@given(st.integers(0, 50), chances, st.floats(0, 1e9), st.none() | st.integers(0, 5), st.floats(-1e9, 1e9))
def test_whatever_happens_the_next_poll_is_neither_now_nor_never(
    failures: int, chance: float, told_s: float, round_: int | None, asked_s: float
) -> None:
    pace = Pace().told(round_, told_s)
    for _ in range(failures):
        pace = pace.failed(asked_s)
    assert timing.FLOOR_S / 2 <= pace.wait(0.0, chance) <= timing.LONGEST_S * 1.5


@given(chances, st.floats(0, timing.LONGEST_S))
def test_nobody_comes_back_before_the_coordinator_said(chance: float, asked_s: float) -> None:
    assert Pace().failed(asked_s).wait(0.0, chance) >= asked_s


def test_a_success_forgets_failures_and_what_was_asked() -> None:
    assert Pace().failed(600.0).failed().reached() == Pace()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        (None, 0.0),
        ("soon", 0.0),
        ("-5", 0.0),
        ("1e3", 0.0),
        ("9" * 400, timing.LONGEST_S),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(days=1), usegmt=True), 0.0),
    ],
)
def test_retry_after_is_read_as_seconds_or_a_date(value: str | None, seconds: float) -> None:
    assert retry_after(value, NOW) == seconds


def test_polls_are_seconds_apart_while_a_round_is_open_and_minutes_otherwise() -> None:
    idle = Pace().told(None, 300)
    assert idle.wait(0.0, 0.0) == 150
    assert idle.told(7, 300).wait(0.0, 0.99) <= timing.ASKED_S


def test_a_node_that_sent_its_update_polls_slowly_until_the_next_round() -> None:
    sent = Pace().told(7, 300).answered(0.0, update=True)
    assert not sent.awaited(1.0)
    assert not sent.told(7, 300).awaited(1.0)
    assert sent.told(8, 300).told(8, 300).awaited(1.0) is False  # asked of 8 before it heard that 8 is open
    assert sent.told(7, 300).told(8, 300).awaited(1.0)


def test_a_node_that_answered_nothing_yet_polls_in_seconds_until_the_round_closes_or_is_forgotten() -> None:
    owing = Pace().answered(10.0, update=False)
    assert owing.awaited(11.0)
    assert owing.told(7, 300).awaited(11.0)
    assert not owing.told(None, 300).awaited(11.0)
    assert not owing.awaited(10.0 + timing.OWED_S)


@given(st.integers(0, 86_399), chances)
def test_a_metered_node_rests_until_after_midnight_utc(second: int, chance: float) -> None:
    now = datetime(2026, 11, 21, tzinfo=UTC) + timedelta(seconds=second)
    back = now + timedelta(seconds=until_tomorrow(now, chance))
    assert datetime(2026, 11, 22, tzinfo=UTC) <= back <= datetime(2026, 11, 22, 1, 0, 1, tzinfo=UTC)


def herd(nodes: int, capacity: int, away_s: int, *, jitter: bool = True) -> tuple[float, int]:
    """Nodes lose their coordinator at 0; back, it serves ``capacity`` requests a second and refuses the rest.

    Returns:
        Seconds after its return until all were served, and the most requests of one second after it.
    """
    chance = random.Random(0)
    queue = [(chance.random() * 0.2, node, Pace()) for node in range(nodes)]
    heapq.heapify(queue)
    offered: dict[int, int] = {}
    served: dict[int, int] = {}
    last = 0.0
    while queue:
        now, node, pace = heapq.heappop(queue)
        second = int(now)
        offered[second] = offered.get(second, 0) + 1
        if now >= away_s and served.get(second, 0) < capacity:
            served[second] = served.get(second, 0) + 1
            last = now
            continue
        pace = pace.failed(5.0 if now >= away_s else 0.0)
        heapq.heappush(queue, (now + pace.wait(now, chance.random() if jitter else 0.5), node, pace))
    return last - away_s, max(count for second, count in offered.items() if second >= away_s)


def test_ten_thousand_nodes_return_without_a_stampede() -> None:
    """facts/reliability.md §4.1: all back in under 120 s, a peak of at most 1.5 times the capacity."""
    recovered_s, peak = herd(10_000, capacity=1_000, away_s=60)
    assert recovered_s < 120
    assert peak <= 1_500


def test_without_jitter_they_would_stampede() -> None:
    assert herd(10_000, capacity=1_000, away_s=60, jitter=False)[1] > 1_500
