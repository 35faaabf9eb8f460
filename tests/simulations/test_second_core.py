"""A child on another core: it finds what is found here, or nothing, and nothing is left behind."""

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from coordinator import requantizer
from coordinator.requantizer import proof_of, register
from fleet.errors import BudgetError, LinkError, StoreError, TrustError
from fleet.quantization import Template
from fleet.task import weights_of
from fleet.weights import Flat
from node.learning import Learning
from simulations import second_core as module
from simulations.once import registration
from simulations.scenario import Scenario, Wish, scenario
from simulations.second_core import SecondCore, second_core
from simulations.smartwatch import _feature_constants, smartwatch
from simulations.world import World
from tests import toy_task
from tests.waiting import until

Begun = list["subprocess.Popen[bytes]"]


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Begun:
    """Every child that was begun."""
    begun: Begun = []
    begin = module._child
    monkeypatch.setattr(module, "_child", lambda *wish: begun.append(child := begin(*wish)) or child)  # type: ignore[func-returns-value, arg-type]
    monkeypatch.setattr(module, "_cores", lambda: 2)
    return begun


def started(program: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.fixture
def plan() -> Scenario:
    """Four devices without noise: what they learn is the same wherever they do."""
    return scenario(Wish(model="cnn", nodes=4, rounds=2, epsilon=math.inf))


def played(plan: Scenario, folder: Path, core: SecondCore | None, watch: Callable[[World], None]) -> Any:
    """The bases of two rounds, and what each device was charged."""
    world = World(folder, plan.task, plan.settings, plan.fleet, seed=0, started=time.monotonic(), core=core)
    with closing(world):
        for _ in range(2):
            world._play_hour()
            watch(world)
        charges = {name: device.agent.ledger.charges() for name, device in world.devices.items()}
        masters = [world.coordinator.bases[number].master for number in range(3)]
    assert list(folder.rglob("*-wal")) == [], "every database is let go of"
    return masters, charges


@pytest.mark.slow
def test_a_fleet_learns_the_same_with_a_second_core_and_when_that_dies(
    plan: Scenario, children: Begun, tmp_path: Path
) -> None:
    alone = played(plan, tmp_path / "alone", None, lambda _: None)
    asked: list[str] = []

    class Counted(SecondCore):
        def session(self, node: Learning, base: Flat) -> tuple[Flat, int] | None:
            asked.append(node.name)
            return super().session(node, base)

    with second_core("cnn", 0):
        assert played(plan, tmp_path / "two", Counted(children[0]), lambda _: None) == alone
    assert sorted(asked) == sorted([*plan.fleet][1::2] * 2)
    with second_core("cnn", 0) as core:
        assert played(plan, tmp_path / "dies", core, lambda _: children[1].kill()) == alone


@pytest.mark.slow
def test_what_a_child_charged_that_died_of_a_session_stays_charged_and_the_session_is_asked_for_again(
    tmp_path: Path,
) -> None:
    plan = scenario(Wish(model="cnn", nodes=4, rounds=4))
    alone = played(plan, tmp_path / "alone", None, lambda _: None)[1]
    program = (
        "import os\nfrom coordinator import requantizer\nfrom node import learner\n"
        "from simulations import second_core\n"
        "requantizer.proof_of = lambda task: b''\nlearner.session = lambda *_, **__: os._exit(1)\n"
        "second_core._serve('cnn', '0')"
    )
    with started(program) as child:
        dies = played(plan, tmp_path / "dies", SecondCore(child), lambda _: None)[1]
    first = [*plan.fleet][1]
    assert dies == alone | {first: [alone[first][0], *alone[first]]}


PROOF = '{"proof": ""}'
ANSWERS = [
    pytest.param({"delta": None, "mu2": 0}, nullcontext(), id="no examples"),
    pytest.param(
        {"error": BudgetError.exit_code, "reason": "spent"}, pytest.raises(BudgetError, match="spent"), id="no budget"
    ),
]


@pytest.mark.parametrize(("answer", "outcome"), ANSWERS)
def test_what_the_child_says_of_a_session_is_what_it_would_be_here(
    answer: dict[str, object], outcome: AbstractContextManager[object]
) -> None:
    program = f"import sys\nprint('{PROOF}', flush=True)\nsys.stdin.readline()\nprint({json.dumps(answer)!r})"
    node: Any = SimpleNamespace(folder="nowhere")
    with started(program) as child, outcome:
        assert SecondCore(child).session(node, np.zeros(3, np.float32)) is None


def test_the_child_says_what_it_refuses_and_what_fails_here(tmp_path: Path) -> None:
    answer = module._learned({}, toy_task.TASK, str(tmp_path), "")
    assert answer == {"error": TrustError.exit_code, "reason": f"{tmp_path} was never provisioned"}
    full: Any = SimpleNamespace(session=Mock(side_effect=sqlite3.OperationalError("database or disk is full")))
    answer = module._learned({"node": full}, toy_task.TASK, "node", "")
    assert answer == {"error": StoreError.exit_code, "reason": "database or disk is full"}


def test_an_order_that_nobody_reads_any_more_leaves_nothing_to_write() -> None:
    node: Any = SimpleNamespace(folder="nowhere", session=lambda base: "learned here")
    base = np.zeros(3, np.float32)
    with started(f"print('{PROOF}')") as child:
        core = SecondCore(child)
        core.proof()
        child.wait()
        with pytest.raises(LinkError):
            core.session(node, base)
        assert core.session(node, base) == "learned here"


def test_interrupted_no_session_is_begun_any_more() -> None:
    learned: list[str] = []

    def device(name: str) -> Any:
        def learn() -> None:
            learned.append(name)
            if name == "a":
                raise KeyboardInterrupt
            time.sleep(0.3)

        return SimpleNamespace(agent=SimpleNamespace(mind=lambda: None, learn=learn))

    world: Any = object.__new__(World)
    world._core, world._recordings = SimpleNamespace(lives=True), "abcd"
    world.devices = {name: device(name) for name in "abcd"}
    with pytest.raises(KeyboardInterrupt):
        world._step_all()
    assert set(learned) <= {"a", "b"}


@pytest.mark.slow
def test_the_child_finds_what_is_found_here(children: Begun) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a world does
    _feature_constants.cache_clear()
    try:
        with second_core("features", 0) as core:
            assert core
            assert core.proof() == core.proof() == proof_of(smartwatch("features", 0))
    finally:
        torch.set_num_threads(threads)
    assert len(children) == 1


def test_the_child_works_on_one_thread_as_a_world_does() -> None:
    program = (
        "import torch\nfrom coordinator import requantizer\nfrom simulations import second_core\n"
        "torch.set_num_threads(4)\nrequantizer.proof_of = lambda task: b'%d' % torch.get_num_threads()\n"
        "second_core._serve('features', '0')"
    )
    with started(program) as child:
        assert SecondCore(child).proof() == b"1"


def test_a_child_that_came_to_nothing_has_nothing_to_say(children: Begun) -> None:
    with second_core("no-such-model", 0) as core:
        assert core
        assert core.proof() is None
    assert [child.returncode for child in children] == [1]


def test_a_child_that_cannot_be_begun_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_cores", lambda: 2)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with second_core("features", 0) as core:
        assert core is None


def test_a_child_that_takes_too_long_is_done_without_and_ended(
    children: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_S", 0.01)
    with second_core("features", 0) as core:
        assert core
        assert core.proof() is None
    assert [child.returncode for child in children] == [-signal.SIGKILL]


def test_no_child_outlives_the_start(children: Begun) -> None:
    with pytest.raises(KeyboardInterrupt), second_core("features", 0):
        raise KeyboardInterrupt
    assert [child.returncode for child in children] == [-signal.SIGKILL]


def test_no_child_outlives_a_parent_that_was_killed(tmp_path: Path) -> None:
    working = tmp_path / "working"
    (tmp_path / "torch.py").write_text(  # by itself the child would never end
        f"import os, pathlib, time\npathlib.Path({str(working)!r}).write_text(str(os.getpid()))\ntime.sleep(3600)"
    )
    program = (
        "import time\nfrom simulations import second_core as module\nmodule._cores = lambda: 2\n"
        "with module.second_core('features', 0):\n    time.sleep(3600)"
    )
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    with subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": paths}) as parent:
        try:
            until(lambda: working.exists() and working.read_text() != "")
        finally:
            parent.kill()
    until(lambda: not _lives(int(working.read_text())))


def _lives(pid: int) -> bool:
    """Whether there is such a process, and it is more than a body that nobody has buried."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b"" if Path("/proc/self").exists() else True
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_one_core_has_no_child_beside_it(children: Begun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_cores", lambda: 1)
    with second_core("features", 0) as core:
        assert core is None
    assert children == []


def test_the_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert module._cores() == 1


@pytest.mark.slow
def test_a_start_asks_for_the_proof_once_and_exports_once(monkeypatch: pytest.MonkeyPatch) -> None:
    task, asked, exported = smartwatch("features", 2), [], []
    proof, export = proof_of(task), requantizer.export
    monkeypatch.setattr(requantizer, "export", lambda *what: exported.append(what) or export(*what))  # type: ignore[func-returns-value]
    for _ in range(2):
        registration(task, lambda: asked.append(1) or proof)  # type: ignore[func-returns-value]
    assert (len(asked), len(exported)) == (1, 1)


@pytest.mark.slow
def test_a_proof_that_is_something_else_is_found_here(monkeypatch: pytest.MonkeyPatch) -> None:
    task, found = smartwatch("features", 2), []
    monkeypatch.setattr(requantizer, "proof_of", lambda what: found.append(what) or proof_of(what))  # type: ignore[func-returns-value]
    registered = register(task, weights_of(task.model()), lambda: b"another artifact")
    assert found == [task]
    assert isinstance(registered.template, Template)
