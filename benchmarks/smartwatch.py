"""The table: what learning together is worth on people it never saw, with and without privacy.

``python -m benchmarks.smartwatch`` leaves one person out, over all ten; the learning is the loop's own, alone
(``benchmarks.learning``). Not all that is measured was chosen without looking at the people left out: docs/accuracy.md.
"""

import csv
import json
import logging
import math
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy import stats

from fleet.output import Format
from fleet.privacy.gaussian import MU2_UNIT, Budget, epsilon_of
from fleet.settings import Settings
from simulations import spar
from simulations.smartwatch import PERSONS

BUDGETS = (math.inf, 8.0, 3.0, 1.0)
REFERENCE, RELEASE_0 = "together, no privacy, warm", "donor only"
WIDTH = 132  # of the table in a file
COLUMNS = {
    "new": "new people",
    "later": "new people, later",
    "own": "own devices, later",
}


@dataclass(frozen=True, slots=True)
class Measurement:
    """One model of one fold and seed: its share of right answers on the windows that ``column`` names."""

    fold: int
    seed: int
    model: str
    column: str
    accuracy: float


def measure(fold: int, seed: int) -> list[Measurement]:
    """Train and judge every model of one fold."""
    import torch

    from fleet import flwr_compat

    flwr_compat.quieten()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    from benchmarks.models import models

    return [
        Measurement(fold, seed, model, column, accuracy)
        for model, found in models(fold, seed, BUDGETS)
        for column, accuracy in found.items()
    ]


@dataclass(frozen=True, slots=True)
class Paired:
    """Points against another model on the same people; ``confidence`` is half of Student's 95 % interval."""

    difference: float
    confidence: float

    @classmethod
    def of(cls, people: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> "Paired":
        """From one accuracy a person, each the mean over seeds, and the other model's for the same people."""
        pairs, count = 100 * (people - others), len(people)
        half = (
            float(stats.t.ppf(0.975, count - 1)) * float(pairs.std(ddof=1)) / math.sqrt(count)
            if count > 1
            else math.nan
        )
        return cls(float(pairs.mean()), half)


@dataclass(frozen=True, slots=True)
class Row:
    """One model and column over all people: percent, and points against the fleet without privacy and release 0."""

    model: str
    column: str
    mean: float
    spread: float
    against_reference: Paired
    against_release_0: Paired


def summary(measured: list[Measurement]) -> list[Row]:
    """A row for every model and column, in the order in which a fold measures them."""
    people: dict[tuple[str, str], dict[int, list[float]]] = {}
    for m in sorted(measured, key=lambda m: (m.fold, m.seed)):  # stable
        people.setdefault((m.model, m.column), {}).setdefault(m.fold, []).append(m.accuracy)
    means = {key: np.array([np.mean(found[fold]) for fold in sorted(found)]) for key, found in people.items()}
    return [
        Row(
            model,
            column,
            mean=float(100 * values.mean()),
            spread=float(100 * values.std(ddof=1)) if len(values) > 1 else math.nan,
            against_reference=Paired.of(values, means[REFERENCE, column]),
            against_release_0=Paired.of(values, means[RELEASE_0, column]),
        )
        for (model, column), values in means.items()
    ]


def units(settings: Settings) -> dict[str, dict[str, float]]:
    """What each ε of the table, stated for one 2 s window, is for more of a person's data: exact group privacy."""
    train = [seen.train for seen in spar.recordings().values()]
    bout = int(median(int(count) for part in train for count in np.bincount(part.y)))
    device = int(median(len(part) for part in train))
    sizes = {
        "2 s window": 1,
        "two windows": 2,
        f"a bout ({bout} windows)": bout,
        f"a device ({device} windows)": device,
    }
    found = {}
    for epsilon in BUDGETS:
        if math.isfinite(epsilon):
            mu = math.sqrt(Budget(epsilon, settings.privacy.delta).cap_mu2 / MU2_UNIT)
            found[f"{epsilon:g}"] = {name: epsilon_of(k * mu, settings.privacy.delta) for name, k in sizes.items()}
    return found


def main(
    folds: Annotated[int, typer.Option(min=1, max=PERSONS, help="How many people are left out, one after another.")] = (
        PERSONS
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions: warm start, forests, and fresh noise.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = min(2, os.cpu_count() or 1),
    out: Annotated[Path | None, typer.Option(help="A CSV file for every single figure.")] = None,
    format_: Annotated[Format, typer.Option("--format", help="A table, or one JSON object.")] = Format.TEXT,
) -> None:
    """Measure the table."""
    jobs = [(fold, seed) for seed in range(seeds) for fold in range(folds)]
    measured: list[Measurement] = []
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task(f"{folds} people, {seeds} seeds", total=len(jobs))
        for found in _results(jobs, workers):
            measured += found
            if out:
                _write(out, measured)  # what is measured is kept, should the rest be interrupted
            progress.advance(bar)
    rows = summary(measured)
    if format_ is Format.JSON:
        typer.echo(json.dumps(_object(folds, seeds, rows)))
    else:
        _print(folds, seeds, rows)


def _results(jobs: list[tuple[int, int]], workers: int) -> Iterator[list[Measurement]]:
    if workers == 1:
        yield from (measure(*job) for job in jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(measure, *job) for job in jobs]):
            yield done.result()


def _write(path: Path, measured: list[Measurement]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(Measurement.__slots__))
        writer.writeheader()
        writer.writerows(asdict(m) for m in measured)


def _object(folds: int, seeds: int, rows: list[Row]) -> dict[str, Any]:
    return {
        "schema": 1,
        "folds": folds,
        "seeds": seeds,
        "reference": REFERENCE,
        "delta": Settings().privacy.delta,
        "epsilon_of_unit": units(Settings()),
        "rows": [_finite(asdict(row)) for row in rows],
    }


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: what one person alone cannot say is null."""
    return {
        name: _finite(value) if isinstance(value, dict) else None if value != value else value
        for name, value in fields.items()
    }


def _print(folds: int, seeds: int, rows: list[Row]) -> None:
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    table = Table(title=f"Right answers, percent: mean and spread over {folds} people, {seeds} seeds")
    table.add_column("model", no_wrap=True)
    for column in COLUMNS.values():
        table.add_column(column, justify="right")
    table.add_column("new, paired", justify="right")
    table.add_column("against release 0", justify="right")
    by_model: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_model.setdefault(row.model, {})[row.column] = row
    for model, found in by_model.items():
        cells = [f"{found[c].mean:.1f} ± {found[c].spread:.1f}" if c in found else "" for c in COLUMNS]
        new = found.get("new")
        paired = [_shown(new.against_reference), _shown(new.against_release_0)] if new else []
        table.add_row(model, *cells, *paired)
    console.print(table)
    console.print(
        f"Paired: points against '{REFERENCE}', and against '{RELEASE_0}', on the same people; 95 % intervals.\n"
    )
    console.print(_units())


def _shown(paired: Paired) -> str:
    return f"{paired.difference:+.1f} ± {paired.confidence:.1f}"


def _units() -> Table:
    found = units(Settings())
    table = Table(title=f"What an epsilon covers, at delta {Settings().privacy.delta:g}")
    for name in next(iter(found.values())):
        table.add_column(name, justify="right")
    for row in found.values():
        table.add_row(*(f"{value:.3g}" for value in row.values()))
    return table


if __name__ == "__main__":
    typer.run(main)
