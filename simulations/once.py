"""What one process needs to find out only once, however many simulated coordinators and nodes want to know it."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from coordinator.requantizer import Registration, register
from coordinator.warm_start import warm_start
from fleet.release import Release
from fleet.signing import sha256
from fleet.task import Task, weights_of
from fleet.weights import Flat
from node.admission import Admit, admit
from simulations.agreement import disagreement

_REGISTERED: dict[Task, Registration] = {}


def registration(task: Task, proof: Callable[[], bytes | None] = lambda: None) -> Registration:
    """The exported and quantized graph; fleets that are played one after the other share it.

    Raises:
        TaskError: The model cannot be exported or quantized.
    """
    if task not in _REGISTERED:
        _REGISTERED[task] = register(task, weights_of(task.model()), proof)
    return _REGISTERED[task]


def answers(task: Task, seed: int = 0) -> Sequence[str]:
    """What is wrong with the answers of release 0's artifact."""
    return disagreement(task, registration(task).template, first_weights(task, seed))


@cache
def first_weights(task: Task, seed: int) -> Flat:
    """The weights of release 0, ``(size,)`` float32."""
    return warm_start(task, seed)


def _once_per_artifact() -> Admit:
    """Every simulated node here is this machine with this runtime: what one child process found out holds for all."""
    admitted: set[str] = set()

    def admit_once(artifact: Path, release: Release, golden: bytes, shape: tuple[int, ...]) -> None:
        question = sha256(artifact.read_bytes() + golden + release.to_bytes())
        if question not in admitted:
            admit(artifact, release, golden, shape)
            admitted.add(question)

    return admit_once


ADMIT = _once_per_artifact()
