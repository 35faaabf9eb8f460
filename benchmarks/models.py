"""Every model of the table, trained and judged for one fold and seed."""

import math
from collections.abc import Iterator

import numpy as np

from benchmarks.central import Central, forest, linear
from benchmarks.fold import Fold, accuracy, fold_of, right
from benchmarks.learning import Learning
from coordinator.warm_start import warm_start
from fleet.errors import TaskError
from fleet.privacy.noise import LatticeGaussian
from fleet.settings import Settings, load
from fleet.task import Recording, Windows, weights_of
from fleet.weights import Flat
from node.personal import personalise

Accuracies = dict[str, float]  # by column: on new people, on their later windows, on the fleet's later windows


def models(fold: int, seed: int, budgets: tuple[float, ...]) -> Iterator[tuple[str, Accuracies]]:
    """The name of each model and how it does."""
    place = fold_of(fold)
    donor, cold = warm_start(place.task, seed), weights_of(place.task.model())
    learning = Learning(place.task, place.template, {name: seen.train for name, seen in place.fleet.items()})
    donors = learning.served(donor)
    yield "donor only", _judged(place, donors)
    yield "donor only, personal head", _personal(place, donors)
    for name, start in (("warm", donor), ("cold", cold)):
        for epsilon in budgets:
            if seed and name == "cold" and not math.isfinite(epsilon):
                continue  # nothing in it is left to chance
            served = learning.served(learning.master(_private(epsilon), start, LatticeGaussian()))
            privacy = f"epsilon {epsilon:g}" if math.isfinite(epsilon) else "no privacy"
            yield f"together, {privacy}, {name}", _judged(place, served)
            if name == "warm":
                yield f"together, {privacy}, personal head", _personal(place, served)
    if seed == 0:  # nothing in it is left to chance
        yield "one device alone, no privacy", _alone(place, cold)
    yield from _central(place, seed)


def _private(epsilon: float) -> Settings:
    return load(None, {}).changed(privacy={"epsilon": epsilon})


def _sets(place: Fold) -> dict[str, Windows]:
    away, fleet = place.away.values(), place.fleet.values()
    return {
        "new": Windows.joined([part for seen in away for part in (seen.train, seen.live)]),
        "later": Windows.joined([seen.live for seen in away]),
        "own": Windows.joined([seen.live for seen in fleet]),
    }


def _judged(place: Fold, weights: Flat) -> Accuracies:
    return {name: accuracy(place.task, weights, windows) for name, windows in _sets(place).items()}


def _personal(place: Fold, weights: Flat) -> Accuracies:
    """Each device fits the head to its own early windows and is judged on its own later ones."""

    def later(devices: dict[str, Recording]) -> float:
        own = [(personalise(place.task, weights, seen.train), seen.live) for seen in devices.values()]
        return float(np.concatenate([right(place.task, head, live) for head, live in own]).mean())

    return {"later": later(place.away), "own": later(place.fleet)}


def _alone(place: Fold, start: Flat) -> Accuracies:
    """A device that learns only from itself: on its own later windows, and on a person that another model met."""
    new, later, own = [], [], []
    for name, seen in {**place.fleet, **place.away}.items():
        learning = Learning(place.task, place.template, {name: seen.train})
        weights = learning.served(learning.master(_private(math.inf), start, LatticeGaussian()))
        if name in place.away:
            later.append(right(place.task, weights, seen.live))
        else:
            own.append(right(place.task, weights, seen.live))
            new.append(_judged(place, weights)["new"])
    return {
        "new": float(np.mean(new)),
        "later": float(np.concatenate(later).mean()),
        "own": float(np.concatenate(own).mean()),
    }


def _central(place: Fold, seed: int) -> Iterator[tuple[str, Accuracies]]:
    pooled = _pooled(place)
    yield "central random forest", _judged_centrally(place, forest(pooled, seed))
    if seed == 0:  # nothing in it is left to chance
        yield "central logistic regression", _judged_centrally(place, linear(pooled))


def _judged_centrally(place: Fold, model: Central) -> Accuracies:
    return {name: model.accuracy(windows) for name, windows in _sets(place).items()}


def _pooled(place: Fold) -> Windows:
    """What a warm fleet learned from, in one place: the early windows of its devices, and the donor's."""
    if place.task.donor is None:
        raise TaskError(f"{place.task.name}: without a donor there is no warm start to compare with")
    return Windows.joined([*(seen.train for seen in place.fleet.values()), place.task.donor()])
