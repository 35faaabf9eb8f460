"""A child of a simulation on another core: it makes a start's second export, then learns for every other device."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from fleet.errors import FleetError, LinkError, StoreError
from fleet.garbage import kept_for_good
from fleet.parent import end_with_parent

if TYPE_CHECKING:
    from fleet.task import Task
    from fleet.weights import Flat
    from node.learning import Learning

LONGEST_S = 60.0  # for one answer; then it is quicker to do without


class SecondCore:
    """What the child is asked for, by one thread at a time. It may die at any moment: its work is done here then."""

    def __init__(self, child: "subprocess.Popen[bytes]") -> None:
        self._child = child
        self.lives = True

    def proof(self) -> bytes | None:
        """What ``coordinator.requantizer.proof_of`` gives; None if the child came to nothing."""
        return self._proof

    @cached_property
    def _proof(self) -> bytes | None:
        answer = self._answer()
        return b64decode(answer["proof"]) if answer else None

    def session(self, node: "Learning", base: "Flat") -> "tuple[Flat, int] | None":
        """As ``Learning.session``, there; here, once the child is dead.

        Raises:
            LinkError: It died of this one, and what it was charged for it stays charged: it may be asked for again.
        """
        import numpy as np

        from node.children import ERRORS

        self.proof()  # the child says it first
        if not self.lives:
            return node.session(base)
        self._order({"folder": str(node.folder), "base": _text(base.tobytes())})
        answer = self._answer()
        if answer is None:
            raise LinkError("the process on the second core ended")
        if error := answer.get("error"):
            raise ERRORS.get(error, FleetError)(answer["reason"])
        if answer["delta"] is None:
            return None
        return np.frombuffer(b64decode(answer["delta"]), np.float32), answer["mu2"]

    def end(self) -> None:
        """Let it go, and every database that it holds open."""
        self.lives = False
        self._child.kill()
        self._child.wait()

    def _order(self, order: dict[str, Any]) -> None:
        assert self._child.stdin  # noqa: S101 - begun with a pipe
        try:
            self._child.stdin.write(json.dumps(order).encode() + b"\n")
            self._child.stdin.flush()
        except OSError:
            self._child.kill()  # and so it answers nothing
            with suppress(OSError):
                self._child.stdin.close()  # or what it did not read would be written once more at the end

    def _answer(self) -> dict[str, Any] | None:
        timer = threading.Timer(LONGEST_S, self._child.kill)
        timer.daemon = True
        timer.start()
        try:
            answer: dict[str, Any] = json.loads(self._child.stdout.readline() if self._child.stdout else b"")
            return answer
        except ValueError:  # it ended
            self._child.kill()
            self.lives = False
            return None
        finally:
            timer.cancel()


@contextmanager
def second_core(model: str, fold: int) -> Iterator[SecondCore | None]:
    """A child that knows the built-in task, and ends with us; None where there is no other core, or no child."""
    child = _child(model, fold) if _cores() > 1 else None
    if child is None:
        yield None
        return
    with child:
        core = SecondCore(child)
        try:
            yield core
        finally:
            core.end()


def _cores() -> int:
    """Those that this process may use, where the system says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _child(model: str, fold: int) -> "subprocess.Popen[bytes] | None":
    command = [sys.executable, "-P", "-m", __name__, model, str(fold)]
    pipe = subprocess.PIPE
    try:
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)  # noqa: S603 - our own module
    except OSError:
        return None


def _serve(model: str, fold: str) -> None:
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a person's Ctrl-C is the parent's, who ends this
    orders: SimpleQueue[dict[str, Any]] = SimpleQueue()
    end_with_parent(lambda line: orders.put(json.loads(line)))
    with kept_for_good():
        import torch

        from coordinator.requantizer import proof_of
        from simulations.smartwatch import smartwatch

        torch.set_num_threads(1)  # as in a world: the last bits of what is read off the donor depend on it
        task = smartwatch(model, int(fold))  # type: ignore[arg-type] # it checks
        print(json.dumps({"proof": _text(proof_of(task))}), file=said, flush=True)
    nodes: dict[str, Learning] = {}
    while True:
        print(json.dumps(_learned(nodes, task, **orders.get())), file=said, flush=True)


def _learned(nodes: "dict[str, Learning]", task: "Task", folder: str, base: str) -> dict[str, Any]:
    import numpy as np

    from node.learning import Learning
    from simulations.clock import SimulatedClock

    try:
        if folder not in nodes:
            nodes[folder] = Learning(Path(folder), task, clock=SimulatedClock())
        session = nodes[folder].session(np.frombuffer(b64decode(base), np.float32))
    except FleetError as error:
        return {"error": error.exit_code, "reason": str(error)}
    except (OSError, sqlite3.Error) as error:  # a full disk: what was asked for is not done, and this goes on
        return {"error": StoreError.exit_code, "reason": str(error)}
    delta, mu2 = session or (None, 0)
    return {"delta": None if delta is None else _text(delta.tobytes()), "mu2": mu2}


def _text(data: bytes) -> str:
    return b64encode(data).decode()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
