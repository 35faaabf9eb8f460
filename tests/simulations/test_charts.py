"""Charts: places in percent, text that stays text, bounds that go on beyond the edge."""

import re

import pytest

from simulations.charts import (
    ROW,
    Axis,
    Interval,
    Lane,
    Series,
    Span,
    axis_to,
    bar_chart,
    interval_chart,
    line_chart,
    timeline,
)

TEN = Axis("ten", 0, 10, ((0, "0"), (10, "10")))
HOSTILE = "<b>&\"'"


@pytest.mark.parametrize(("value", "place"), [(-5, 0), (0, 0), (5, 50), (10, 100), (20, 100)])
def test_a_value_has_its_place_and_never_leaves_the_plot(value: float, place: float) -> None:
    assert TEN.place(value) == place


@pytest.mark.parametrize(
    ("high", "ticks"), [(0, [0, 1]), (8, [0, 2, 4, 6, 8]), (20, [0, 5, 10, 15, 20]), (32, [0, 10, 20, 30])]
)
def test_ticks_are_few_and_round(high: float, ticks: list[int]) -> None:
    assert [value for value, _ in axis_to("hours", high).ticks] == ticks


@pytest.mark.parametrize("high", [1, 7, 13, 99, 1234, 10**6])
def test_there_are_never_more_than_seven_ticks(high: float) -> None:
    assert 2 <= len(axis_to("", high).ticks) <= 7


def test_a_line_goes_through_its_points_and_a_mark_has_its_error() -> None:
    series = [Series("s", "a", "line", ((0, 0, 0), (10, 5, 0))), Series("t", "b", "dot", ((5, 5, 2),))]
    drawn = line_chart("t", "d", series, x=TEN, y=TEN)
    assert 'points="0.00,100.00 100.00,50.00"' in drawn
    assert 'x1="50.00%" y1="70.00%" x2="50.00%" y2="30.00%"' in drawn
    assert '<circle cx="50.00%" cy="50.00%"' in drawn


def test_a_bar_is_as_high_as_its_value() -> None:
    drawn = bar_chart("t", "d", [(5, 2.5, "quarter")], x=TEN, y=TEN)
    assert 'y="75.00%" width="7.00%" height="25.00%"><title>quarter</title>' in drawn


def test_bounds_beyond_the_edge_end_in_an_arrow_and_an_estimate_there_is_not_drawn() -> None:
    def drawn(*bounds: float) -> str:
        low, middle, high = bounds
        return interval_chart("t", "d", [Interval("n", "note", "a", (low, middle, high))], x=TEN, lines=[])

    assert "‹" not in drawn(1, 5, 9)
    assert "circle" in drawn(1, 5, 9)
    assert "‹" in drawn(-3, 5, 9)
    assert "›" in drawn(1, 12, 30)
    assert "circle" not in drawn(1, 12, 30)


def test_without_evidence_there_is_nothing_but_words() -> None:
    drawn = interval_chart("t", "d", [Interval("nobody reported", "halted", "e", None)], x=TEN, lines=[])
    assert "nobody reported" in drawn
    assert "circle" not in drawn


def test_lanes_lie_below_each_other() -> None:
    lanes = [Lane(f"n{i}", (Span(0, 5, "R1", "r1", "solid", "note"),)) for i in range(3)]
    drawn = timeline("t", "d", lanes, x=TEN)
    assert [int(y) for y in re.findall(r'<rect [^>]*y="(\d+)"', drawn)] == [3, ROW + 3, 2 * ROW + 3]
    assert f'height="{3 * ROW}"' in drawn


def test_a_name_is_written_only_where_there_is_room() -> None:
    def drawn(high: float) -> str:
        return timeline("t", "d", [Lane("n", (Span(0, high, "R7", "r1", "solid", "note"),))], x=TEN)

    assert ">R7<" in drawn(5)
    assert ">R7<" not in drawn(0.2)


def test_whatever_comes_in_is_text() -> None:
    span = Span(0, 5, HOSTILE, HOSTILE, "solid", HOSTILE)
    axis = Axis(HOSTILE, 0, 10, ((0, HOSTILE),))
    lanes = [Lane(HOSTILE, (span,), ((1, HOSTILE, HOSTILE),))]
    series = [Series(HOSTILE, HOSTILE, "dot", ((1, 1, 1),))]
    entries = [Interval(HOSTILE, HOSTILE, HOSTILE, (1, 2, 3))]
    drawn = [
        timeline(HOSTILE, HOSTILE, lanes, x=axis),
        line_chart(HOSTILE, HOSTILE, series, x=axis, y=axis),
        bar_chart(HOSTILE, HOSTILE, [(1, 1, HOSTILE)], x=axis, y=axis),
        interval_chart(HOSTILE, HOSTILE, entries, x=axis, lines=[(1, HOSTILE, HOSTILE)]),
    ]
    for chart in drawn:
        assert "<b>" not in chart
        assert chart.count("&lt;b&gt;&amp;&#34;&#39;") >= 5
