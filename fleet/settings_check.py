"""What would not work about settings, or has a price: noise, rounds, and evidence that no release can meet."""

from collections.abc import Iterator

import numpy as np

from fleet.errors import BudgetError
from fleet.evidence import ROLLBACK_EVIDENCE, VETO_EVIDENCE, fewest_harmed
from fleet.finding import Finding, failure
from fleet.settings import RoundSettings, Settings
from fleet.task import Task

LONGEST_STEP = 0.1  # of a weight in a round: at ten times that, the built-in model's weights grew tenfold in 20 rounds


def check_settings(task: Task, settings: Settings) -> Iterator[Finding]:
    """What is wrong with the settings, or has a price."""
    privacy = settings.privacy
    if not np.isfinite(privacy.epsilon):
        yield Finding("warning", "privacy.epsilon", "is infinite: no noise, and nothing is promised to anyone")
    elif privacy.delta * task.training.examples >= 1:
        yield failure(
            "privacy.delta",
            f"{privacy.delta:g} promises nothing: it lets one in {task.training.examples} examples be published",
        )
    elif privacy.delta * task.training.examples >= 0.1:
        yield Finding(
            "warning",
            "privacy.delta",
            f"{privacy.delta:g} is too near one in {task.training.examples} examples to promise much",
        )
    yield from _noise(task, settings)
    if unused := privacy.planned_releases % settings.round.rounds:
        yield Finding(
            "warning",
            "privacy.planned_releases",
            f"{privacy.planned_releases} do not divide into {settings.round.rounds} rounds: {unused} stay unused",
        )
    yield from _server_step(settings.round)
    yield from _own_evidence(settings)


def step_length(settings: RoundSettings) -> float:
    """About how far the first round moves every weight, whatever was learned; 0 where it moves by what was learned.

    FedAdam, FedYogi and FedAdagrad divide the mean by its size; Flower's FedYogi begins with too small a guess of it.
    """
    longest = {"FedAdam": 1.0, "FedYogi": 10 * (1 - settings.server_momentum), "FedAdagrad": 1.0}
    return settings.server_learning_rate * longest.get(settings.server_step.partition(":")[2], 0.0)


def _server_step(settings: RoundSettings) -> Iterator[Finding]:
    length, rate = step_length(settings), settings.server_learning_rate
    if length > LONGEST_STEP:
        name, fit = settings.server_step.partition(":")[2], rate * LONGEST_STEP / length
        found = f"{rate:g}: a round of {name} moves every weight by about {length:.2g}, however little was learned"
        yield Finding("warning", "round.server_learning_rate", f"{found}: use {fit:.2g} or less")


def _own_evidence(settings: Settings) -> Iterator[Finding]:
    """What a node's own windows can say, before and after a release serves."""
    for stage, windows, evidence, lost in (
        ("shadow_windows", settings.release.shadow_windows, VETO_EVIDENCE, "veto a release"),
        ("probation_windows", settings.release.probation_windows, ROLLBACK_EVIDENCE, "go back by itself"),
    ):
        needed = fewest_harmed(evidence)
        if windows < needed:
            found = f"{windows}, and a node is sure of harm after {needed} at least"
            yield Finding("warning", f"release.{stage}", f"{found}: no node can {lost}")


def _noise(task: Task, settings: Settings) -> Iterator[Finding]:
    privacy, examples = settings.privacy, task.training.examples
    budget = privacy.budget(task.unit.group)
    try:
        noise_multiplier = budget.noise_multiplier(privacy.planned_releases)
    except BudgetError as error:
        yield failure("privacy.epsilon", str(error))
        return
    if noise_multiplier > 10 * examples:
        found = f"{privacy.epsilon:g} asks for noise ten times longer than what {examples} examples say together"
        yield Finding("warning", "privacy.epsilon", f"{found}: nothing will be learned")
