"""The second export of a start, made by a child: the same bytes, or nothing, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from coordinator import requantizer
from coordinator.requantizer import proof_of, register
from fleet.quantization import Template
from fleet.task import weights_of
from simulations import second_export as module
from simulations.once import registration
from simulations.second_export import second_export
from simulations.smartwatch import _feature_constants, smartwatch

Begun = list["subprocess.Popen[bytes]"]


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Begun:
    """Every child that was begun."""
    begun: Begun = []
    begin = module._child
    monkeypatch.setattr(module, "_child", lambda *wish: begun.append(child := begin(*wish)) or child)  # type: ignore[func-returns-value, arg-type]
    monkeypatch.setattr(module, "_cores", lambda: 2)
    return begun


@pytest.mark.slow
def test_the_child_finds_what_is_found_here(children: Begun) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a world does
    _feature_constants.cache_clear()
    try:
        with second_export("features", 0) as proof:
            assert proof() == proof_of(smartwatch("features", 0))
    finally:
        torch.set_num_threads(threads)
    assert len(children) == 1


def test_the_child_works_on_one_thread_as_a_world_does() -> None:
    program = (
        "import torch\nfrom coordinator import requantizer\nfrom simulations import second_export\n"
        "torch.set_num_threads(4)\nrequantizer.proof_of = lambda task: b'%d' % torch.get_num_threads()\n"
        "second_export._prove('features', '0')"
    )
    pipe = subprocess.PIPE  # held open: the child ends with it
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe) as child:
        assert child.stdout
        assert child.stdout.read() == b"1"


def test_a_child_that_came_to_nothing_has_nothing_to_say(children: Begun) -> None:
    with second_export("no-such-model", 0) as proof:
        assert proof() is None
    assert [child.returncode for child in children] == [1]


def test_the_start_does_not_wait_until_the_child_has_taken_itself_down() -> None:
    program = (
        "import atexit, time\nfrom coordinator import requantizer\nfrom simulations import second_export\n"
        "atexit.register(time.sleep, 3600)\nrequantizer.proof_of = lambda task: b'found'\n"
        "second_export._prove('features', '0')"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe) as child:
        assert module._artifact(child) == b"found"


def test_a_child_that_cannot_be_begun_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_cores", lambda: 2)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with second_export("features", 0) as proof:
        assert proof() is None


def test_a_child_that_takes_too_long_is_done_without_and_ended(
    children: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_S", 0.01)
    with second_export("features", 0) as proof:
        assert proof() is None
    assert [child.returncode for child in children] == [-signal.SIGKILL]


def test_no_child_outlives_the_start(children: Begun) -> None:
    with pytest.raises(KeyboardInterrupt), second_export("features", 0):
        raise KeyboardInterrupt
    assert [child.returncode for child in children] == [-signal.SIGKILL]


def test_no_child_outlives_a_parent_that_was_killed(tmp_path: Path) -> None:
    working = tmp_path / "working"
    (tmp_path / "torch.py").write_text(  # by itself the child would never end
        f"import os, pathlib, time\npathlib.Path({str(working)!r}).write_text(str(os.getpid()))\ntime.sleep(3600)"
    )
    program = (
        "import time\nfrom simulations import second_export as module\nmodule._cores = lambda: 2\n"
        "with module.second_export('features', 0):\n    time.sleep(3600)"
    )
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    with subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": paths}) as parent:
        try:
            _wait(lambda: working.exists() and working.read_text() != "")
        finally:
            parent.kill()
    _wait(lambda: not _lives(int(working.read_text())))


def _wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _lives(pid: int) -> bool:
    """Whether there is such a process, and it is more than a body that nobody has buried."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b"" if Path("/proc/self").exists() else True
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_one_core_has_no_child_beside_it(children: Begun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_cores", lambda: 1)
    with second_export("features", 0) as proof:
        assert proof() is None
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
