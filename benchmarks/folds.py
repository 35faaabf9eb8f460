"""Accuracy on people the fleet never saw, over all ten folds, private beside non-private.

``python -m benchmarks.folds`` runs ``edgefleet simulate`` for each fold and each budget; one seed.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

FOLDS = 10


def run(fold: int, epsilon: str, model: str, seed: int) -> dict[str, Any]:
    """The JSON result of one simulation."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fleet", "simulate", "--format", "json", "--fold", str(fold)]
        command += ["--epsilon", epsilon, "--model", model, "--seed", str(seed), "--out", str(Path(folder) / "run")]
        shown = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - ours
    outcome: dict[str, Any] = json.loads(shown.stdout)
    return outcome


def main(
    model: Annotated[str, typer.Option(help="features or cnn.")] = "features",
    seed: Annotated[int, typer.Option(help="Seed of everything but the noise.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Play every fold at epsilon 8 and without privacy."""
    budgets = ("8", "inf")
    jobs = [(fold, budget) for fold in range(FOLDS) for budget in budgets]
    shown = track(jobs, "playing", console=Console(stderr=True))
    results = {(fold, budget): run(fold, budget, model, seed) for fold, budget in shown}
    if as_json:
        typer.echo(json.dumps({f"fold {fold}, epsilon {budget}": r for (fold, budget), r in results.items()}))
        return
    table = Table(
        "fold", "release 0", "epsilon 8", "no privacy", "agreement", "first promotion, s", "wall, s", "releases"
    )
    for fold in range(FOLDS):
        private, free = results[fold, "8"], results[fold, "inf"]
        table.add_row(
            str(fold),
            *(f"{value:.1%}" for value in (private["donor_accuracy"], private["new_device_accuracy"])),
            f"{free['new_device_accuracy']:.1%}",
            f"{min(private['float_agreement'], free['float_agreement']):.2%}",
            f"{private['first_promotion_s'] or float('nan'):.1f}",
            f"{private['wall_s']:.1f}",
            f"{private['releases']} / {free['releases']}",
        )
    Console().print(table)
    for budget in budgets:
        values = [results[fold, budget]["new_device_accuracy"] for fold in range(FOLDS)]
        agreed = [results[fold, budget]["float_agreement"] for fold in range(FOLDS)]
        typer.echo(
            f"{model}, epsilon {budget}: mean {mean(values):.1%}, spread over people {stdev(values):.1%}; "
            f"int8 and float32 agree on {mean(agreed):.2%}, in the worst fold on {min(agreed):.2%}"
        )


if __name__ == "__main__":
    typer.run(main)
