"""The coordinator as a process: the operator's wishes, one at a time."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from coordinator import service
from coordinator.service import Service
from fleet.errors import LinkError
from fleet.events import ignore
from tests.coordinator.conftest import NOW, SETTINGS


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Service:
    """A service that nobody runs: whoever wishes waits."""
    monkeypatch.setattr(service, "PATIENCE_S", 0.1)
    coordinator: Any = type("Coordinator", (), {"size": 1})()
    nobody: Any = None
    return Service(coordinator, nobody, nobody, nobody, SETTINGS, clock=lambda: NOW, record=ignore)


def test_a_wish_that_was_not_granted_in_time_is_never_granted(idle: Service) -> None:
    withdrawn: list[int] = []
    with pytest.raises(LinkError, match="ask again"):
        idle._in_turn(lambda: withdrawn.append(1))
    idle._wait(0.01)
    assert not withdrawn


def test_a_wish_under_way_when_patience_ends_is_waited_for(idle: Service) -> None:
    begun, answers = threading.Event(), []

    def slow() -> str:
        begun.set()
        time.sleep(0.3)
        return "withdrawn"

    def granted(wish: Callable[[], str]) -> None:
        answers.append(idle._in_turn(wish))

    asking = threading.Thread(target=granted, args=[slow])
    asking.start()
    idle._wait(5.0)
    asking.join()
    assert begun.is_set()
    assert answers == ["withdrawn"]
