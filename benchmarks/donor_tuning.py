"""How everything of the smartwatch task was chosen: on donors, each alone, never on the people of their folds.

A donor has two watches and an early and a late part of each exercise. What must carry over to other devices is
judged from one wrist of a donor to the other; weight decay from early to later windows. The figures are means over
the ten donors; ``donors for it`` counts those who, asked alone, would have chosen the same.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
import typer

from benchmarks import central
from benchmarks.fold import accuracy
from benchmarks.learning import Learning
from coordinator.requantizer import register
from coordinator.warm_start import warm_start
from fleet import flwr_compat
from fleet.privacy.noise import LatticeGaussian
from fleet.quantization import Template
from fleet.settings import load
from fleet.task import Recording, Task, Training, Windows, weights_of
from fleet.weights import Flat
from simulations import spar
from simulations.motion import feature_constants, feature_model
from simulations.smartwatch import PERSONS, Model, smartwatch

DECAYS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
RATES = (10.0, 20.0, 30.0, 50.0, 80.0)
LIMITS = (5.0, 9.0, 13.0, 20.0, 30.0)
INVERSE_PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)
FLEET = 16  # devices of a fold
GROUPS = {
    "means": slice(0, 6),
    "deviations": slice(6, 12),
    "quantiles": slice(12, 42),
    "correlations": slice(42, 57),
    "energies": slice(57, 111),
    "leads": slice(111, 141),
    "jerks": slice(141, 147),
}


@dataclass(frozen=True)
class Wrists:
    """A donor's wrist that is public, and the other one; ``task`` and release 0, ``start``, know the first alone."""

    task: Task
    start: Flat
    first: Recording
    second: Recording


class OfFleet:
    """The noise in the mean of a whole fleet's updates, for one device that stands for all of them."""

    def __init__(self) -> None:
        self._noise = LatticeGaussian()

    def integers(self, size: int, std: float) -> npt.NDArray[np.int64]:
        """``size`` draws of N(0, std²/16), rounded."""
        return self._noise.integers(size, std / math.sqrt(FLEET))


def decay() -> None:
    """The warm start's weight decay: trained on a donor's early windows, judged on the later ones."""
    models: Sequence[Model] = ("features", "cnn")
    for model in models:
        _compare(f"{model}, weight decay", {f"{value:g}": partial(_later, model, value) for value in DECAYS})


def mirror() -> None:
    """Which axes a right wrist mirrors: release 0 of one wrist, judged on the other, whose x, y, z change sign."""
    _compare("signs of x, y, z", {str(signs): partial(_mirrored, signs) for signs in product((1, -1), repeat=3)})


def features() -> None:
    """What each group of features is worth: release 0 of one wrist, judged on the other, without the group."""
    groups = {"nothing": slice(0, 0)} | GROUPS
    _compare("left out", {name: partial(_without, columns) for name, columns in groups.items()})


def forest() -> None:
    """The central random forest: fitted to one wrist, judged on the other."""
    shares: Sequence[float | str] = ("sqrt", 0.1, 0.3)
    grid = {f"{share}, {leaf}": partial(_forest, share, leaf) for share in shares for leaf in (1, 3, 5)}
    _compare("forest, features and leaf", grid)


def linear() -> None:
    """The central logistic regression's inverse penalty: fitted to one wrist, judged on the other."""
    _compare("logistic regression, C", {f"{value:g}": partial(_linear, value) for value in INVERSE_PENALTIES})


def steps() -> None:
    """How long steps are: a fleet of one wrist 16 times, with a fleet's noise, judged on new windows.

    Cold, it learns the first wrist and is judged on the second; warm, it goes on from the first wrist with the
    second's early windows and is judged on its later ones.
    """
    flwr_compat.quieten()
    for epsilon in (math.inf, 8.0):
        grid = {f"{rate:g}": Training(rate, examples=80, noise_limit=math.inf) for rate in RATES}
        _compare(f"epsilon {epsilon:g}, learning rate", {k: partial(_learned, epsilon, v) for k, v in grid.items()})
    for epsilon in (3.0, 1.0):
        grid = {f"{limit:g}": Training(30.0, examples=80, noise_limit=limit) for limit in LIMITS}
        _compare(f"epsilon {epsilon:g}, noise limit", {k: partial(_learned, epsilon, v) for k, v in grid.items()})


QUESTIONS = {"decay": decay, "mirror": mirror, "features": features, "forest": forest, "linear": linear, "steps": steps}


def main(
    questions: Annotated[list[str] | None, typer.Argument(help="decay mirror features forest linear steps")] = None,
) -> None:
    """Ask the donors, all questions or some."""
    torch.set_num_threads(1)
    for name in questions or QUESTIONS:
        QUESTIONS[name]()


def _compare(title: str, choices: Mapping[str, Callable[[int], float]]) -> None:
    table = np.array([[ask(fold) for fold in range(PERSONS)] for ask in choices.values()])
    best = table.max(axis=0)
    for name, row in zip(choices, table, strict=True):
        for_it = int((row >= best).sum())
        print(f"{title:32} {name:12} {row.mean():.3f}   donors for it: {for_it}", flush=True)


def _later(model: Model, weight_decay: float, fold: int) -> float:
    task = smartwatch(model, fold)
    donors = _donors(fold)
    early = replace(task, donor=lambda: Windows.joined([seen.train for seen in donors]))
    return accuracy(
        task, warm_start(early, seed=0, weight_decay=weight_decay), Windows.joined([s.live for s in donors])
    )


def _mirrored(signs: Sequence[int], fold: int) -> float:
    """Signs are those of the raw readings: what the data set's own mirror did is undone first."""
    right_wrist = np.array([-1, 1, 1, 1, -1, -1], np.float32).reshape(-1, 1)
    handed = int(np.prod(signs))
    turned = right_wrist * np.array([*signs, *(handed * sign for sign in signs)], np.float32).reshape(-1, 1)
    found = []
    for wrists in _wrists(fold):
        windows = _all(wrists.second)
        found.append(accuracy(wrists.task, wrists.start, Windows(windows.x * turned, windows.y)))
    return float(np.mean(found))


def _without(columns: slice, fold: int) -> float:
    found = []
    for wrists in _wrists(fold):
        mean, deviation = feature_constants(_all(wrists.first))
        deviation[columns] = math.inf  # whatever the feature says, the head sees zero
        task = replace(wrists.task, model=partial(feature_model, mean, deviation))
        found.append(accuracy(task, warm_start(task, seed=0), _all(wrists.second)))
    return float(np.mean(found))


def _forest(share: float | str, leaf: int, fold: int) -> float:
    pairs = [(_all(wrists.first), _all(wrists.second)) for wrists in _wrists(fold)]
    return float(
        np.mean([central.forest(a, 0, max_features=share, min_samples_leaf=leaf).accuracy(b) for a, b in pairs])
    )


def _linear(inverse_penalty: float, fold: int) -> float:
    pairs = [(_all(wrists.first), _all(wrists.second)) for wrists in _wrists(fold)]
    return float(np.mean([central.linear(a, inverse_penalty).accuracy(b) for a, b in pairs]))


def _learned(epsilon: float, training: Training, fold: int) -> float:
    settings = load(None, {}).changed(privacy={"epsilon": epsilon})
    found = []
    for wrists in _wrists(fold):
        task = replace(wrists.task, training=training)
        for start, device, judge in (
            (weights_of(task.model()), wrists.first.train, _all(wrists.second)),
            (wrists.start, wrists.second.train, wrists.second.live),
        ):
            learning = Learning(task, _template(), {"all": device})
            found.append(accuracy(task, learning.served(learning.master(settings, start, OfFleet())), judge))
    return float(np.mean(found))


def _donors(fold: int) -> list[Recording]:
    """The recordings that are not among the private devices: the donor's left wrist and the right one."""
    private = smartwatch("features", fold).devices()
    return [seen for name, seen in sorted(spar.recordings().items()) if name not in private]


@cache
def _wrists(fold: int) -> list[Wrists]:
    """From the left wrist to the right, and back."""
    found = []
    left, right = _donors(fold)
    for first, second in ((left, right), (right, left)):
        public = _all(first)
        model = partial(feature_model, *feature_constants(public))
        task = replace(smartwatch("features", fold), model=model, donor=partial(_all, first))
        found.append(Wrists(task, warm_start(task, seed=0), first, second))
    return found


def _all(seen: Recording) -> Windows:
    return Windows.joined([seen.train, seen.live])


@cache
def _template() -> Template:
    """That of any fold serves all: how weights are quantized depends on no constant of the front."""
    task = smartwatch("features", 0)
    return register(task, weights_of(task.model())).template


if __name__ == "__main__":
    typer.run(main)
