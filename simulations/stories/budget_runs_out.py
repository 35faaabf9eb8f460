"""The budget runs out: most owners planned for fewer rounds than the coordinator asks for.

What a node may spend is pinned on it, and no coordinator can raise it. One node after the other reaches the end of its
plan and learns no more for the fleet; answering, pulling and a head of its own cost no budget.
"""

import math
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np

from fleet.errors import UsageError
from fleet.settings import Settings
from fleet.task import Recording, Windows
from node.personal import personalise
from simulations.stories.story import Figure, Story, accuracy, count, events

if TYPE_CHECKING:
    from simulations.world import World

ROUNDS = 14
SHORTEST_PLAN = 4
STAYING = 0.25  # the share of owners who planned for all rounds
RELEASES_A_SESSION = 12


class BudgetRunsOut(Story):
    """Owners' plans, from short to full, are all that this scripts."""

    name = "budget-runs-out"
    title = "The budget runs out"
    fixed = frozenset({"rounds"})

    def __init__(self) -> None:
        self._plans: dict[str, int] = {}

    def settings(self, settings: Settings) -> Settings:
        """The coordinator asks on, and averages whoever still answers.

        Raises:
            UsageError: A budget without end does not run out.
        """
        if settings.privacy.epsilon == math.inf:
            raise UsageError(f"privacy.epsilon: inf: --story {self.name} needs a budget that has an end")
        return settings.changed(
            privacy={"planned_releases": ROUNDS * RELEASES_A_SESSION},
            round={"rounds": ROUNDS, "min_updates": 2, "deadline": timedelta(minutes=2)},
            release={"margin": 0.1, "waves": (0.25, 1.0)},
        )

    def recordings(self, fleet: dict[str, Recording]) -> dict[str, Recording]:
        """Plans go to the owners in the order of names: first those that are full, then ever shorter ones."""
        staying = math.ceil(STAYING * len(fleet))
        leaving = np.linspace(ROUNDS - 1, SHORTEST_PLAN, len(fleet) - staying).round()
        plans = [ROUNDS] * staying + [int(plan) for plan in leaving]
        self._plans = dict(zip(sorted(fleet), plans, strict=True))
        return fleet

    def pinned(self, name: str, settings: Settings) -> Settings:
        """As many sessions as the owner planned for; the noise follows from the plan."""
        plan = self._plans[name]
        return settings.changed(round={"rounds": plan}, privacy={"planned_releases": plan * RELEASES_A_SESSION})

    def tell(self, world: "World", held_out: dict[str, Recording]) -> tuple[list[str], dict[str, Figure]]:
        """From the ledgers, the registry and the nodes' stages."""
        registry = world.coordinator.registry
        spent = _refused_by_their_ledger(world)
        answered = [registry.rounds.answered(round_.number) for round_ in registry.rounds.all()]
        learned = {name: sum(name in names for names in answered) for name in spent}
        epsilons = [world.devices[name].agent.ledger.epsilon() for name in spent]
        newest = registry.releases.serving().number
        pulled = sum((world.devices[name].agent.stages.serving()[0] or 0) >= newest for name in spent)
        shared, personal = _accuracies(world, spent)
        updates = [len(names) for names in answered]
        figures: dict[str, Figure] = {
            "nodes_spent": len(spent),
            "first_spent_after": min(learned.values(), default=None),
            "last_spent_after": max(learned.values(), default=None),
            "updates_in_first_round": updates[0],
            "updates_in_last_round": updates[-1],
            "rounds_as_planned": sum(learned[name] == self._plans[name] for name in spent),
            "epsilon_of_spent": max(epsilons, default=None),
            "epsilon": world.settings.privacy.epsilon,
            "newest_release": newest,
            "spent_on_newest_release": pulled,
            "spent_accuracy": shared,
            "spent_personalised_accuracy": personal,
        }
        told = [
            f"Of {len(world.devices)} nodes {len(spent)} stopped learning one by one, the first after "
            f"{figures['first_spent_after']} rounds and the last after {figures['last_spent_after']} of {ROUNDS}.",
            f"Their ledgers hold an epsilon of {max(epsilons, default=0):.3f} of {world.settings.privacy.epsilon:g} "
            f"and refused every session after that: the last round had {count(updates[-1], 'update')} of {updates[0]}.",
            f"All went on answering, and {pulled} of the {len(spent)} end on the newest release that all may serve, or "
            f"a newer one: right on {shared:.0%} of their later windows, and on {personal:.0%} with a head of their "
            f"own, which never leaves the node and costs nothing.",
        ]
        return told, figures


def _refused_by_their_ledger(world: "World") -> list[str]:
    """Nodes whose ledger refused a session, in the order in which that began."""
    return list(dict.fromkeys(event["who"] for event in events(world, "spent")))


def _accuracies(world: "World", names: list[str]) -> tuple[float, float]:
    """Accuracy on the nodes' live windows of the weights they were sent, and of those with each node's own head."""
    registry, right = world.coordinator.registry, np.zeros(2)
    for name in names:
        device = world.devices[name]
        active = device.agent.stages.serving()[0] or 0
        weights = world.coordinator.bases.master(world.coordinator.bases[registry.releases.all()[active][0].base])
        seen = Windows.joined(
            [device.agent.buffer.examples(partition) for partition in device.agent.buffer.partitions()]
        )
        live = device.recording.live
        for column, own in enumerate((weights, personalise(world.task, weights, seen))):
            right[column] += accuracy(world.task, own, live) * len(live)
    shared, personal = right / max(1, sum(len(world.devices[name].recording.live) for name in names))
    return float(shared), float(personal)
