"""The table: paired over people, with intervals that say how little ten people prove."""

import csv
import json
import math
from pathlib import Path

import dp_accounting
import numpy as np
import pytest
import typer
from scipy import stats
from typer.testing import CliRunner

from benchmarks import models, smartwatch
from benchmarks.smartwatch import REFERENCE, RELEASE_0, Measurement, Paired, summary, units
from fleet.settings import Settings


def measured(model: str, figures: dict[tuple[int, int], float]) -> list[Measurement]:
    return [Measurement(fold, seed, model, "new", value) for (fold, seed), value in figures.items()]


def test_a_person_counts_once_however_many_seeds() -> None:
    reference = measured(REFERENCE, {(0, 0): 0.8, (1, 0): 0.9, (2, 0): 0.7})
    other = measured("other", {(0, 0): 0.5, (0, 1): 0.7, (1, 0): 0.8, (2, 0): 0.7})
    first = measured(RELEASE_0, {(0, 0): 0.5, (1, 0): 0.8, (2, 0): 0.6})
    rows = {row.model: row for row in summary(reference + other + first)}
    assert rows["other"].mean == pytest.approx(70.0)
    assert rows["other"].spread == pytest.approx(10.0)
    assert rows["other"].against_reference.difference == pytest.approx(-10.0)
    assert rows["other"].against_release_0.difference == pytest.approx(20 / 3)
    assert rows[REFERENCE].against_reference == Paired(0, 0)


def test_the_interval_of_a_paired_difference_is_that_of_a_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.uniform(size=10), rng.uniform(size=10)
    paired = Paired.of(ours, theirs)
    low, high = stats.ttest_rel(100 * ours, 100 * theirs).confidence_interval(0.95)
    assert (paired.difference - paired.confidence, paired.difference + paired.confidence) == pytest.approx((low, high))


def test_every_epsilon_is_stated_for_more_than_its_window() -> None:
    delta = Settings().privacy.delta
    for epsilon, covered in units(Settings()).items():
        window, two, bout, device = covered.values()
        assert window == pytest.approx(float(epsilon), abs=1e-6)
        assert window < two < bout < device
        noise = dp_accounting.get_sigma_gaussian(window, delta)
        assert two == pytest.approx(dp_accounting.get_epsilon_gaussian(noise / 2, delta), rel=1e-5)


def test_one_person_and_one_seed_are_a_table_without_intervals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Played short: one round of one release."""
    short = Settings().changed(privacy={"planned_releases": 1}, round={"rounds": 1})
    monkeypatch.setattr(models, "_private", lambda epsilon: short.changed(privacy={"epsilon": epsilon}))
    app = typer.Typer()
    app.command()(smartwatch.main)
    flags = ["--folds", "1", "--seeds", "1", "--workers", "1", "--out", str(tmp_path / "raw.csv"), "--format", "json"]
    shown = CliRunner().invoke(app, flags)
    assert shown.exit_code == 0, shown.output
    table = json.loads(shown.stdout)
    found = {(row["model"], row["column"]): row for row in table["rows"]}
    for model in (
        "donor only",
        "together, epsilon 8, warm",
        "together, epsilon 1, cold",
        "one device alone, no privacy",
    ):
        assert {column for name, column in found if name == model} == {"new", "later", "own"}
    assert {column for name, column in found if name == "together, epsilon 8, personal head"} == {"later", "own"}
    assert all(0 <= row["mean"] <= 100 and row["against_reference"]["confidence"] is None for row in found.values())
    with (tmp_path / "raw.csv").open() as file:
        raw = {(row["model"], row["column"]): float(row["accuracy"]) for row in csv.DictReader(file)}
    assert {key: 100 * value for key, value in raw.items()} == pytest.approx(
        {k: row["mean"] for k, row in found.items()}
    )
    assert not any(math.isnan(value) for value in raw.values())
