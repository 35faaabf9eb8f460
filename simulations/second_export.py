"""A start exports its model twice, to prove that patching is exact; a child makes the second export meanwhile."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fleet.garbage import kept_for_good
from fleet.parent import end_with_parent

Proof = Callable[[], bytes | None]
LONGEST_S = 60.0  # then it is quicker to do without


def nothing() -> None:
    """No artifact was found elsewhere."""


@contextmanager
def second_export(model: str, fold: int) -> Iterator[Proof]:
    """What ``coordinator.requantizer.proof_of`` gives for the built-in ``model``, found on another core.

    It gives None where there is no other core, or where the child came to nothing: whoever asked finds it again, or
    why it cannot be found.
    """
    child = _child(model, fold) if _cores() > 1 else None
    if child is None:
        yield nothing
        return
    with child:
        try:
            yield lambda: _artifact(child)
        finally:
            child.kill()


def _cores() -> int:
    """Those that this process may use, where the system says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _child(model: str, fold: int) -> "subprocess.Popen[bytes] | None":
    command = [sys.executable, "-P", "-m", __name__, model, str(fold)]
    pipe = subprocess.PIPE
    try:  # its input stays open: it ends with us
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)  # noqa: S603 - our own module
    except OSError:
        return None


def _artifact(child: "subprocess.Popen[bytes]") -> bytes | None:
    """What the child found; its input stays open meanwhile, for it ends when that closes."""
    timer = threading.Timer(LONGEST_S, child.kill)
    timer.daemon = True
    timer.start()
    try:
        artifact = child.stdout.read() if child.stdout else b""
        return artifact if child.wait() == 0 else None
    finally:
        timer.cancel()


def _prove(model: str, fold: str) -> None:
    said = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no artifact
    end_with_parent()
    with kept_for_good():
        import torch

        from coordinator.requantizer import proof_of
        from simulations.smartwatch import smartwatch

    torch.set_num_threads(1)  # as in a world: the last bits of what is read off the donor depend on it
    with said:
        said.write(proof_of(smartwatch(model, int(fold))))  # type: ignore[arg-type] # it checks
    os._exit(0)  # to take torch down takes a second, for which the start would wait


if __name__ == "__main__":
    _prove(*sys.argv[1:])
