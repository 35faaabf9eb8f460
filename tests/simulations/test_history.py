"""The timeline: which release answered when, as the log tells it."""

import pytest

from simulations.facts import Event
from simulations.history import as_played, lanes, look_of


def told(*events: tuple[float, str, int], hours: float = 10.0, reason: str = "") -> list[tuple[float, float, str, str]]:
    (lane,) = lanes(["n"], [Event(h, "n", name, {"release": r, "reason": reason}) for h, name, r in events], hours)
    return [(span.low, span.high, span.name, span.kind) for span in lane.spans]


PROVISIONED = [(0.0, "shadow", 0), (0.0, "probation", 0), (0.0, "committed", 0)]


def test_a_provisioned_release_answers_from_the_first_moment() -> None:
    assert told(*PROVISIONED) == [(0, 10, "R0", "solid")]


def test_a_release_is_watched_then_on_probation_then_answers() -> None:
    assert told(*PROVISIONED, (2, "shadow", 1), (4, "probation", 1), (5, "committed", 1)) == [
        (2, 4, "R1", "thin"),
        (0, 4, "R0", "solid"),
        (4, 5, "R1", "hatched"),
        (5, 10, "R1", "solid"),
    ]


@pytest.mark.parametrize("ended", ["rolled-back", "rejected"])
def test_after_a_rollback_or_when_it_is_superseded_on_probation_the_old_release_answers_again(ended: str) -> None:
    assert told(*PROVISIONED, (4, "probation", 1), (6, ended, 1), reason="superseded") == [
        (0, 4, "R0", "solid"),
        (4, 6, "R1", "hatched"),
        (6, 10, "R0", "solid"),
    ]


def test_a_rejected_release_is_watched_no_longer() -> None:
    assert told(*PROVISIONED, (2, "shadow", 1), (7, "rejected", 1)) == [(2, 7, "R1", "thin"), (0, 10, "R0", "solid")]


def test_what_is_on_its_way_at_the_end_is_drawn_to_the_end() -> None:
    assert told(*PROVISIONED, (2, "shadow", 1))[-1] == (2, 10, "R1", "thin")


def test_rollbacks_and_rejections_are_marked_with_their_reason_and_superseding_is_not() -> None:
    events = [
        Event(3, "n", "rejected", {"release": 1, "reason": "veto"}),
        Event(4, "n", "rejected", {"release": 2, "reason": "superseded"}),
        Event(5, "n", "rolled-back", {"release": 3, "reason": "harm"}),
    ]
    (lane,) = lanes(["n"], events, 10)
    assert [(at, sign) for at, sign, _ in lane.moments] == [(3, "×"), (5, "↩")]
    assert "harm" in lane.moments[1][2]


def test_each_node_has_its_lane_and_strangers_have_none() -> None:
    events = [Event(0, "b", "probation", {"release": 0}), Event(0, "x", "probation", {"release": 0})]
    drawn = lanes(["a", "b"], events, 10)
    assert [(lane.name, len(lane.spans)) for lane in drawn] == [("a", 0), ("b", 1)]


def test_an_event_without_a_release_moves_nothing() -> None:
    (lane,) = lanes(["n"], [Event(1, "n", "probation", {}), Event(1, "n", "probation", {"release": "x"})], 10)
    assert lane.spans == ()


def test_neighbouring_releases_differ_in_colour() -> None:
    assert look_of(0) == "r0"
    assert all(look_of(number) != look_of(number + 1) for number in range(20))


def test_a_lane_is_drawn_by_the_hours_that_were_played_and_notes_keep_the_simulated_ones() -> None:
    events = [Event(hour, "n", name, {"release": r}) for hour, name, r in [*PROVISIONED, (721.5, "probation", 1)]]
    events += [Event(722, "n", "rolled-back", {"release": 1, "reason": "harm"})]
    (lane,) = lanes(["n"], events, 1441.0)
    played = as_played(lane, (0.0, 1.0, 721.0, 1441.0))
    assert [(span.low, span.high) for span in played.spans[:1]] == [(0, pytest.approx(2, abs=0.01))]
    assert played.spans[-1].high == 3
    assert played.spans[-1].note == "release 0 answering, hour 722 to 1441"
    assert [at for at, _, _ in played.moments] == [pytest.approx(2 + 1 / 720)]


def test_where_every_hour_was_played_nothing_moves() -> None:
    (lane,) = lanes(["n"], [Event(h, "n", name, {"release": r}) for h, name, r in PROVISIONED], 10.0)
    assert as_played(lane, tuple(range(11))) == lane
