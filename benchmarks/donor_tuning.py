"""How the warm start's weight decay was chosen: each donor alone, trained on early and judged on later windows."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from coordinator.warm_start import warm_start
from fleet.task import Recording, Task, Windows, set_weights
from fleet.weights import Flat
from simulations import spar
from simulations.smartwatch import PERSONS, Model, smartwatch

DECAYS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)


def main() -> None:
    """Print the mean accuracy on the donors' later windows, one line a model and weight decay."""
    models: Sequence[Model] = ("features", "cnn")
    for model in models:
        for decay in DECAYS:
            accuracy = np.mean([_later_accuracy(model, fold, decay) for fold in range(PERSONS)])
            print(f"{model:10} weight decay {decay:<7g} later windows of the donor {accuracy:.3f}", flush=True)


def _later_accuracy(model: Model, fold: int, decay: float) -> float:
    task = smartwatch(model, fold)
    donors = _donors(task)
    early = replace(task, donor=lambda: _joined([seen.train for seen in donors]))
    return _accuracy(task, warm_start(early, seed=0, weight_decay=decay), _joined([seen.live for seen in donors]))


def _donors(task: Task) -> list[Recording]:
    """The recordings that are not among the private devices."""
    private = task.devices()
    return [seen for name, seen in spar.recordings().items() if name not in private]


def _joined(parts: Sequence[Windows]) -> Windows:
    return Windows(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]))


def _accuracy(task: Task, weights: Flat, windows: Windows) -> float:
    model = task.model()
    set_weights(model, weights)
    with torch.no_grad():
        answers = model(torch.from_numpy(windows.x)).argmax(1).numpy()
    return float((answers == windows.y).mean())


if __name__ == "__main__":
    main()
