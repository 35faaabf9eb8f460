"""What a hostile quarter costs, attack by attack, under the default rule and under the plain mean.

``python -m benchmarks.poison`` plays the default plan of rounds at epsilon 8 in every fold, by the loop's own learning
alone (``benchmarks.learning``). The first four attacks are those of the story ``poisoned-cohort``; the others are what
a gang would try that knows the rule. The last four of the 16 devices are hostile.
"""

import json
import logging
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.fold import Fold, accuracy, fold_of
from benchmarks.learning import NOBODY, Gang, Learning
from coordinator.warm_start import warm_start
from fleet import flwr_compat
from fleet.output import Format
from fleet.privacy.gaussian import Budget
from fleet.privacy.noise import LatticeGaussian
from fleet.settings import Settings, load
from fleet.task import Task, Windows
from simulations.smartwatch import PERSONS
from simulations.stories.poisoned_cohort import ATTACKS, RULES, Attack, Delta, Deltas

HOSTILE = 4
SHARES = (0.3, 0.45, 0.6, 0.9)


@dataclass(frozen=True, slots=True)
class Reached:
    """Shares of right answers: on the honest devices' later windows, and on the person left out."""

    fold: int
    attack: str
    rule: str
    own: float
    new: float


def back(times: float) -> Attack:
    """The own delta turned around: once, it is as long as any; 2.9 times, it is just short enough not to be dropped."""
    return lambda deltas, own: -times * deltas[own]


class Hidden:
    """The way back that a gang knows without noise, under noise of each member's own: ``share`` of a usual ``length``.

    By its length it is like any honest delta, and the smaller the share, the less alike are two of the gang.
    """

    def __init__(self, share: float, length: float) -> None:
        self._common, self._own = share * length, math.sqrt(1 - share**2) * length
        self._rng = np.random.default_rng(0)

    def __call__(self, deltas: Deltas, own: int) -> Delta:
        """What one of the gang sends, of the noiseless ``deltas`` of all of it."""
        common, noise = deltas.mean(0), self._rng.normal(size=deltas.shape[1])
        sent: Delta = self._own * noise / np.linalg.norm(noise) - self._common * common / np.linalg.norm(common)
        return sent


def usual_length(task: Task, settings: Settings, size: int) -> float:
    """The norm of a session's noise, which is nearly all of an honest delta's: the settings tell it to everybody."""
    budget = Budget(settings.privacy.epsilon, settings.privacy.delta, task.unit.group)
    noise = budget.noise_multiplier(settings.privacy.planned_releases)
    step = task.training.step_length(noise) * settings.privacy.clipping_norm
    return step * noise * math.sqrt(settings.session_releases * size)


def measure(fold: int) -> list[Reached]:
    """Play every attack in one fold, under both rules."""
    flwr_compat.quieten()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    return list(_played(fold, fold_of(fold)))


def _played(fold: int, place: Fold) -> Iterator[Reached]:
    start, hostile = warm_start(place.task, 0), frozenset(sorted(place.fleet)[-HOSTILE:])
    early = {name: seen.train for name, seen in place.fleet.items()}
    learning = Learning(place.task, place.template, early)
    mislabelled = Learning(place.task, place.template, _mislabelled(early, hostile))
    own = Windows.joined([seen.live for name, seen in place.fleet.items() if name not in hostile])
    new = Windows.joined([part for seen in place.away.values() for part in (seen.train, seen.live)])
    for rule in RULES:
        settings = load(None, {}).changed(round={"aggregation": rule})
        gangs = {"nobody": NOBODY} | _gangs(hostile, usual_length(place.task, settings, start.size))
        for attack, gang in gangs.items():
            learners = learning if gang else mislabelled
            served = learners.served(learners.master(settings, start, LatticeGaussian(), gang or NOBODY))
            yield Reached(fold, attack, rule, *(accuracy(place.task, served, windows) for windows in (own, new)))


def _gangs(hostile: frozenset[str], length: float) -> dict[str, Gang | None]:
    """Who sends what; None where the gang is honest about what it learned, from wrong labels."""
    gangs = {name: Gang(hostile, attack) if attack else None for name, attack in ATTACKS.items()}
    gangs |= {f"the own delta turned, {times:g} times": Gang(hostile, back(times)) for times in (1.0, 2.9)}
    return gangs | {
        f"turned, {share:.0%} of the length, under own noise": Gang(hostile, Hidden(share, length), noiseless=True)
        for share in SHARES
    }


def _mislabelled(early: dict[str, Windows], hostile: frozenset[str]) -> dict[str, Windows]:
    top = max(int(windows.y.max()) for windows in early.values())
    return {name: Windows(seen.x, top - seen.y) if name in hostile else seen for name, seen in early.items()}


def main(
    folds: Annotated[int, typer.Option(min=1, max=PERSONS, help="How many people are left out in turn.")] = PERSONS,
    workers: Annotated[int, typer.Option(min=1, help="Processes that play folds.")] = 2,
    output: Annotated[Format, typer.Option("--format", help="text, or one JSON object.")] = Format.TEXT,
) -> None:
    """Play every attack and print what it cost."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        shown = track(pool.map(measure, range(folds)), "folds", total=folds, console=Console(stderr=True))
        reached = [one for found in shown for one in found]
    if output is Format.JSON:
        typer.echo(json.dumps([asdict(one) for one in reached]))
    else:
        _print(reached)


def _print(reached: list[Reached]) -> None:
    by_key = {(one.attack, one.rule, one.fold): one for one in reached}
    folds = sorted({one.fold for one in reached})
    table = Table(title=f"Points lost to {HOSTILE} hostile devices of 16: mean over {len(folds)} folds (the most)")
    table.add_column("attack", no_wrap=True)
    for rule in RULES:
        table.add_column(f"{rule}, own devices", justify="right")
        table.add_column(f"{rule}, new people", justify="right")
    for attack in dict.fromkeys(one.attack for one in reached if one.attack != "nobody"):
        cells = []
        for rule in RULES:
            pairs = [(by_key["nobody", rule, fold], by_key[attack, rule, fold]) for fold in folds]
            cells += [_lost([100 * (clean.own - hit.own) for clean, hit in pairs])]
            cells += [_lost([100 * (clean.new - hit.new) for clean, hit in pairs])]
        table.add_row(attack, *cells)
    Console(width=150).print(table)
    for rule in RULES:
        clean = [by_key["nobody", rule, fold] for fold in folds]
        typer.echo(
            f"{rule}, nobody hostile: {np.mean([one.own for one in clean]):.1%} on the honest devices' later windows, "
            f"{np.mean([one.new for one in clean]):.1%} on the person left out"
        )


def _lost(points: list[float]) -> str:
    return f"{np.mean(points):.1f} ({max(points):.1f})"


if __name__ == "__main__":
    typer.run(main)
