"""Rounds of learning alone: the loop's own arithmetic, without stores, transport, signatures and releases.

Every step is the product's: sessions of private releases from the dequantized base, the aggregation rule, the server
step, re-quantization. ``tests/simulations/test_learning.py`` holds the result against ``edgefleet simulate``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from coordinator.aggregation import RULES, Entry
from coordinator.strategy import ServerStep
from fleet.privacy.gaussian import Budget
from fleet.privacy.release import Noise
from fleet.quantization import Template
from fleet.settings import Settings
from fleet.task import Task, Windows
from fleet.weights import Flat
from node.learner import PerExampleGradients, session
from simulations.stories.poisoned_cohort import Attack


@dataclass(frozen=True)
class Gang:
    """Hostile devices, what they send in the place of what they learned, and whether they learn it without noise."""

    members: frozenset[str]
    attack: Attack
    noiseless: bool = False

    def bent(self, deltas: dict[str, Flat]) -> dict[str, Flat]:
        """All deltas, with the gang's in the place of its members' own."""
        members = sorted(self.members)
        own = np.stack([deltas[name].astype(np.float64) for name in members])
        return deltas | {name: self.attack(own, row).astype(np.float32) for row, name in enumerate(members)}


NOBODY = Gang(frozenset(), lambda deltas, own: deltas[own])


class Learning:
    """A fleet that learns: each device has its training windows, and nothing ever fails."""

    def __init__(self, task: Task, template: Template, devices: Mapping[str, Windows]) -> None:
        self._task = task
        self._template = template
        source = PerExampleGradients(task)
        self._gradients = {name: source.of(windows) for name, windows in sorted(devices.items())}

    def master(self, settings: Settings, start: Flat, noise: Noise, gang: Gang = NOBODY) -> Flat:
        """The float32 master ``(size,)`` after all planned rounds from the master ``start``."""
        budget = Budget(settings.privacy.epsilon, settings.privacy.delta, self._task.unit.group)
        noise_multiplier = budget.noise_multiplier(settings.privacy.planned_releases)
        server_step, rule = ServerStep(settings.round), RULES[settings.round.aggregation]
        master, memory = start, np.zeros((0, start.size), np.float32)
        for number in range(1, settings.round.rounds + 1):
            base = self.served(master)
            deltas = {
                name: session(
                    gradients,
                    base,
                    step_length=self._task.training.step_length(noise_multiplier),
                    releases=settings.session_releases,
                    clipping_norm=settings.privacy.clipping_norm,
                    noise_multiplier=0.0 if gang.noiseless and name in gang.members else noise_multiplier,
                    noise=noise,
                )
                for name, gradients in self._gradients.items()
            }
            deltas = gang.bent(deltas) if gang.members else deltas
            entries = [Entry(name, name, float(np.linalg.norm(d.astype(np.float64))), 0) for name, d in deltas.items()]
            master, memory = server_step(number, master, rule(entries, deltas.__getitem__), memory)
        return master

    def served(self, master: Flat) -> Flat:
        """The weights that the artifact of ``master`` computes with: those that nodes train from, and serve."""
        return self._template.dequantize(self._template.quantize(master))
