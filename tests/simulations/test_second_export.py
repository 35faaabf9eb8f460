"""The second export of a start, made by a child: the same bytes, or nothing, and nothing left behind."""

import os
import subprocess

import pytest

from coordinator.requantizer import proof_of, register
from fleet.errors import TaskError
from fleet.task import weights_of
from simulations import second_export as module
from simulations.second_export import second_export
from simulations.smartwatch import smartwatch


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> "list[subprocess.Popen[bytes]]":
    """Every child that was begun."""
    begun: list[subprocess.Popen[bytes]] = []

    class Watched(subprocess.Popen[bytes]):
        def __init__(self, command: list[str], **options: int) -> None:
            super().__init__(command, **options)  # type: ignore[arg-type, call-overload]
            begun.append(self)

    monkeypatch.setattr(module.subprocess, "Popen", Watched)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    return begun


@pytest.mark.slow
def test_the_child_finds_what_would_be_found_here() -> None:
    with second_export("features", 3) as proof:
        assert proof() == proof_of(smartwatch("features", 3))


def test_a_child_that_came_to_nothing_has_nothing_to_say(children: "list[subprocess.Popen[bytes]]") -> None:
    with second_export("no-such-model", 0) as proof:
        assert proof() is None
    assert [child.returncode for child in children] == [1]


def test_no_child_outlives_the_start(children: "list[subprocess.Popen[bytes]]") -> None:
    with pytest.raises(KeyboardInterrupt), second_export("features", 0):
        raise KeyboardInterrupt
    assert [child.returncode for child in children] == [-9]


def test_one_core_has_no_child_beside_it(
    children: "list[subprocess.Popen[bytes]]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with second_export("features", 0) as proof:
        assert proof() is None
    assert children == []


@pytest.mark.slow
def test_a_proof_that_is_not_what_patching_makes_is_refused() -> None:
    task = smartwatch()
    with pytest.raises(TaskError, match="patching the template is not the same"):
        register(task, weights_of(task.model()), lambda: b"another artifact")
