"""One question at a time to a node, and patience with one that learns."""

from coordinator.asks import Asks


def test_a_node_is_asked_once_until_it_answers() -> None:
    asks = Asks(again_s=1.0, slowest_s=4.0)
    assert asks.due([7, 8], now=0.0) == [7, 8]
    asks.sent("a", 7)
    assert asks.due([7, 8], now=100.0) == [8]
    assert asks.under_way() == ["a"]
    assert asks.answered("a", now=100.0) == 7
    assert asks.due([7, 8], now=100.0) == [8]
    assert asks.due([7, 8], now=101.0) == [7, 8]


def test_a_node_that_has_nothing_is_asked_ever_more_slowly_up_to_a_bound() -> None:
    asks, now, waits = Asks(again_s=1.0, slowest_s=4.0), 0.0, []
    for number in range(5):
        asks.sent(str(number), 7)
        asks.answered(str(number), now)
        asked = now
        while not asks.due([7], now):
            now += 0.5
        waits.append(now - asked)
    assert waits == [1.0, 2.0, 4.0, 4.0, 4.0]


def test_an_answer_to_another_rounds_question_changes_nothing() -> None:
    asks = Asks(again_s=1.0, slowest_s=4.0)
    assert asks.answered("of another round", now=0.0) is None
    asks.sent("a", 7)
    asks.answered("a", now=0.0)
    asks.answered("a", now=9.0)  # delivered twice
    assert asks.due([7], now=1.0) == [7]
