"""``edgefleet node run`` as a process: with a coordinator and without, with children, ended and killed."""

import json
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import timedelta
from functools import reduce
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from coordinator.admin_client import AdminClient
from fleet.errors import FleetError
from fleet.messages import UpdateInstruction
from fleet.quantization import Template
from fleet.task import Windows
from node.children import Children
from node.client import Client
from node.coordinator_client import CoordinatorClock
from node.status import status
from node.visit import visit
from tests.coordinator.served import SETTINGS, served
from tests.coordinator.wearer import Wearer, clock
from tests.programs.program import ROOT, Program, edgefleet, only_line
from tests.programs.test_enrol import invited, joined
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
TASK = f"{ROOT / 'tests' / 'coordinator' / 'tiny.py'}:TASK"
TINY = (ROOT / "tests" / "coordinator" / "tiny.py").read_text()
X = np.linspace(-3, 3, 4, dtype=np.float32)
# Who was asked and killed is asked again after a third of the deadline; a round that was missed is followed by another.
AGAIN = {'"1h"': '"5s"', '"1m"': '"45s"', "every_rounds = 1": "every_rounds = 100"}
LIVELY = reduce(lambda text, pair: text.replace(*pair), AGAIN.items(), SETTINGS)


class Node:
    """An enrolled node's folder, its coordinator's, and the program that runs it."""

    def __init__(self, home: Path, template: Template, folder: Path) -> None:
        self.home, self.folder = home, folder
        self.where = f"unix:{folder / 'api.sock'}"
        self._template = template
        with served(home, template, LIVELY) as running:
            self.port = urlsplit(running.url).port
            joined(folder, invited(AdminClient(home), folder.name), TASK)

    def served(self) -> "Iterator[object]":
        """Its coordinator, at the address that it knows."""
        return served(self.home, self._template, LIVELY, port=self.port)  # type: ignore[return-value]

    def program(self, *flags: str) -> Program:
        return Program(self.folder.parent, "node", "run", "--folder", str(self.folder), "--listen", self.where, *flags)

    def started(self, program: Program) -> None:
        until(lambda: not program.runs or "answers at" in program.said)
        assert program.runs, program.said

    def asks(self, count: int = 1, label: int | None = None) -> None:
        """A program on the device; every reading is answered."""
        with closing(Client(self.where)) as client:
            for _ in range(count):
                answer = client.infer(X)
                assert answer.release == 0
                if label is not None:
                    client.label(answer.id, label)

    def events(self, name: str) -> list[dict[str, object]]:
        lines = (self.folder / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == name]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, template: Template) -> Node:
    folder = tmp_path_factory.mktemp("run")
    return Node(folder / "coordinator", template, folder / "anna")


def test_a_node_answers_before_while_and_after_its_coordinator_is_there(node: Node) -> None:
    def state() -> str:
        [listed] = AdminClient(node.home).get("nodes")
        return str(listed["state"])

    with node.program() as program:
        node.started(program)
        node.asks()
        until(lambda: bool(node.events("link-lost")))
        with node.served():
            node.asks()
            until(lambda: state() == "online")
            node.asks()
        node.asks()
        shown = edgefleet("node", "status", "--folder", str(node.folder), "--format", "json")
        known = json.loads(shown.stdout)
        fixed = {"name": "anna", "task": "tiny", "learns": True, "release": 0, "candidate": None, "stage": None}
        assert known.items() >= fixed.items()
        assert known["coordinator"] == f"http://127.0.0.1:{node.port}"
        until(lambda: status(node.folder)["answers"] == 4, seconds=10)
        second = edgefleet("node", "run", "--folder", str(node.folder), "--listen", "http://127.0.0.1:0")
        assert (only_line(second.stderr), second.returncode) == (f"{node.folder} is run by another process", 2)
        assert second.stdout == ""
        node.asks()


def terminated(program: Program) -> None:
    program.signal(signal.SIGTERM)
    assert program.ended() == 0
    assert "edgefleet:" not in program.said


def interrupted(program: Program) -> None:
    program.signal(signal.SIGINT, group=True)
    assert program.ended() == 130
    assert program.said.splitlines()[1:] == ["edgefleet: interrupted"]


def killed(program: Program) -> None:
    program.signal(signal.SIGKILL)
    assert program.ended() == -signal.SIGKILL


def killed_learning(node: Node, program: Program) -> bool:
    """Kill whatever child there is, until one of them learned: others pull."""
    for child in program.children():
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    return any(event["part"] == "learn" for event in node.events("kept"))


@pytest.mark.slow
def test_a_node_whose_child_or_self_is_killed_learns_later_and_leaves_no_child(node: Node) -> None:
    ends: list[Callable[[Program], None]] = [terminated, interrupted, killed]
    with node.served():
        admin = AdminClient(node.home)
        with node.program() as program:
            node.started(program)
            node.asks(20, label=1)
            until(lambda: node.events("started") != [] and not program.children())
            wearer = Wearer(invited(admin, "ben")).start()
            until(lambda: bool(program.children()))
            node.asks(20)
            until(lambda: killed_learning(node, program))
            until(lambda: bool(program.children()))
            ends.pop(0)(program)
            assert program.is_gone()
        while ends:
            with node.program() as program:
                node.started(program)
                until(lambda: bool(program.children()))
                ends.pop(0)(program)
                assert program.is_gone()
        with node.program() as program:
            node.started(program)
            node.asks()
            until(lambda: admin.get("status")["rounds"]["done"] >= 1, seconds=120)
        wearer.stop()
    assert status(node.folder)["updates_sent"] >= 1
    first = next(round_ for round_ in rounds(node) if round_["state"] == "closed")
    assert (first["updates"], first["refused"]) == (2, 0)


def rounds(node: Node) -> list[dict[str, object]]:
    with node.served():
        found: list[dict[str, object]] = AdminClient(node.home).get("rounds")
    return found


def test_children_begun_after_the_end_are_ended_too(node: Node) -> None:
    children = Children(timedelta)
    children.stop()
    with visit(node.folder, CoordinatorClock(clock)) as agent, pytest.raises(FleetError, match="ended with -9"):
        children.pull(agent)


def with_code(folder: Path, admin: AdminClient, code: str) -> Path:
    """A node whose task has this code; it has seen something to learn from."""
    (folder / "task.py").write_text(code)
    joined(folder / "node", invited(admin, folder.name), f"{folder / 'task.py'}:TASK")
    with visit(folder / "node", CoordinatorClock(clock)) as agent:
        agent.buffer.keep(Windows(X[None], np.array([1])))
    return folder / "node"


def learned(folder: Path, home: Path) -> list[int]:
    """The bases of the sessions that a child learned."""
    with closing(sqlite3.connect(home / "registry.db")) as registry:
        [(digest,)] = registry.execute("select payload from base where number = 0")
    expires = clock() + timedelta(minutes=1)
    with visit(folder, CoordinatorClock(clock)) as agent:
        Children(timedelta).learn(agent, UpdateInstruction("tiny", expires, round=1, base=0, base_digest=digest))
        return agent.outbox.unsent()


def test_what_a_tasks_code_prints_is_not_taken_for_the_outcome(admin: AdminClient, home: Path, tmp_path: Path) -> None:
    spoken = TINY.replace("    return", "    import os\n    os.write(1, b'{}')\n    print('made')\n    return")
    folder = with_code(tmp_path, admin, f"{spoken}\nprint('loaded')\n")
    assert learned(folder, home) == [0]


def test_code_that_ends_its_process_is_an_error_like_any_other(admin: AdminClient, home: Path, tmp_path: Path) -> None:
    folder = with_code(tmp_path, admin, TINY.replace("    return", "    raise SystemExit(0)\n    return"))
    with pytest.raises(FleetError, match="without an outcome"):
        learned(folder, home)


def test_a_revoked_node_says_so_where_it_was_started_and_answers_on(admin: AdminClient, tmp_path: Path) -> None:
    folder, where = tmp_path / "gone", f"unix:{tmp_path / 'api.sock'}"
    joined(folder, invited(admin, "gone"))
    admin.post("revocations", {"name": "gone"})
    with Program(tmp_path, "node", "run", "--folder", str(folder), "--listen", where) as program:
        until(lambda: not program.runs or "edgefleet: shut-out: " in program.said)
        assert program.runs, program.said
        assert "revoked" in program.said
        with closing(Client(where)) as client:
            assert client.infer(X).release == 0
