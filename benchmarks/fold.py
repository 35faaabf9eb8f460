"""One fold of the table: who is the public donor, who is kept out, who learns, and how a model is judged."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from coordinator.requantizer import register
from fleet.quantization import Template
from fleet.task import Recording, Task, Windows, set_weights, weights_of
from fleet.weights import Flat
from simulations.smartwatch import held_out, smartwatch


@dataclass(frozen=True)
class Fold:
    """The roles of a fold, those of ``edgefleet simulate --fold``."""

    task: Task
    template: Template
    fleet: dict[str, Recording]
    away: dict[str, Recording]


@cache
def fold_of(number: int) -> Fold:
    """Person ``number`` is the donor, the next one is held out, the other eight wear the fleet's 16 devices."""
    task = smartwatch("features", number)
    seen = task.devices()
    return Fold(
        task,
        register(task, weights_of(task.model())).template,
        {name: recording for name, recording in seen.items() if recording.person != held_out(number)},
        {name: recording for name, recording in seen.items() if recording.person == held_out(number)},
    )


def right(task: Task, weights: Flat, windows: Windows) -> npt.NDArray[np.bool_]:
    """For each window, whether ``weights`` name its class."""
    model = task.model().eval()
    set_weights(model, weights)
    with torch.no_grad():
        answers = model(torch.from_numpy(windows.x)).argmax(1).numpy()
    hits: npt.NDArray[np.bool_] = answers == windows.y
    return hits


def accuracy(task: Task, weights: Flat, windows: Windows) -> float:
    """The share of ``windows`` whose class ``weights`` name."""
    return float(right(task, weights, windows).mean())
