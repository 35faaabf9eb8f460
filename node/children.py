"""A node's heavy work, done by children of low priority: the resident process stays small and goes on answering."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from subprocess import PIPE
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any

from fleet.errors import BudgetError, FleetError, LinkError, MissingExtraError, TamperedError, TaskError, TrustError
from fleet.messages import UpdateInstruction
from fleet.release import Rollout
from node.learning import Learning

if TYPE_CHECKING:
    from node.agent import Agent

PULL_S = 3600.0  # a link that says nothing is given up long before (node.transport)
LEARN_S = PULL_S + 1800.0  # it may wait for a pull
ERRORS = {
    kind.exit_code: kind for kind in (TaskError, MissingExtraError, LinkError, TrustError, BudgetError, TamperedError)
}


class Children:
    """Pulls and learns, each in a process that may die without hurting an answer.

    Args:
        offset: How far the coordinator's clock is ahead of this one.
        daily_bytes: What a metered link may carry a day; None for any number.
    """

    def __init__(self, offset: Callable[[], timedelta], *, daily_bytes: int | None = None) -> None:
        self._offset = offset
        self._daily_bytes = daily_bytes
        self._children: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def pull(self, agent: "Agent") -> Rollout | None:
        """As ``InProcess.pull``."""
        rollout = self._run(agent, None, PULL_S)["rollout"]
        return Rollout(**rollout) if rollout else None

    def learn(self, node: Learning, wish: UpdateInstruction) -> None:
        """As ``InProcess.learn``."""
        self._run(node, wish.fields(), LEARN_S)

    def stop(self) -> None:
        """End those that are running, and any that is begun later: whatever they did durably stays."""
        self._stopped = True
        for child in tuple(self._children):
            child.kill()

    def _run(self, node: Learning, wish: dict[str, Any] | None, timeout_s: float) -> dict[str, Any]:
        order = {
            "folder": str(node.folder),
            "offset_s": self._offset().total_seconds(),
            "daily_bytes": self._daily_bytes,
            "wish": wish,
        }
        command = [sys.executable, "-P", "-m", "node.errand"]
        with (
            TemporaryFile() as said,
            # Unbuffered: what a dead child did not read is not written once more when the pipe is closed.
            subprocess.Popen(command, bufsize=0, stdin=PIPE, stdout=PIPE, stderr=said) as child,  # noqa: S603 - our own module
        ):
            self._children.add(child)
            if self._stopped:
                child.kill()
            timer = threading.Timer(timeout_s, child.kill)
            timer.start()
            try:
                return _outcome(child, json.dumps(order).encode() + b"\n", said)
            finally:
                timer.cancel()
                self._children.discard(child)
                child.kill()


def _outcome(child: "subprocess.Popen[bytes]", order: bytes, said: IO[bytes]) -> dict[str, Any]:
    """What the child found; its input stays open meanwhile, for it ends when that closes."""
    with suppress(BrokenPipeError):
        if child.stdin:
            child.stdin.write(order)
    found = child.stdout.read() if child.stdout else b""
    if child.wait() == 0:
        try:
            outcome: dict[str, Any] = json.loads(found)
        except ValueError as error:  # a task's code may end the process as it likes
            raise FleetError("it ended without an outcome") from error
        return outcome
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines() or [f"ended with {child.returncode}"]
    raise ERRORS.get(child.returncode, FleetError)(lines[-1])
