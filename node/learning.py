"""What a node needs to learn, without what it needs to answer: its data, its budget, and what waits to be sent."""

from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fleet.errors import TrustError
from fleet.task import Task
from fleet.weights import Flat
from node.buffer import Buffer
from node.floors import SqliteFloors
from node.identity import Identity
from node.ledger import Ledger
from node.outbox import Outbox
from node.store import open_store

if TYPE_CHECKING:
    from node.learner import Learner


class Learning:
    """The learning half of a node's folder. A process may open it while another one answers from the same folder."""

    def __init__(self, folder: Path, task: Task, *, clock: Callable[[], datetime]) -> None:
        """Open it as it was left, however it was left.

        Raises:
            TamperedError: The store or the ledger was altered.
            TrustError: The node was never provisioned.
        """
        self._store = open_store(folder / "node.db")
        identity = Identity.load(self._store)
        if identity is None:
            raise TrustError(f"{folder} was never provisioned")
        self.folder = folder
        self.identity = identity
        self.task = task
        self.clock = clock
        self.floors = SqliteFloors(self._store)
        self.ledger = Ledger(self._store, identity.budget)
        size = identity.settings.privacy.partition_examples
        self.buffer = Buffer(self._store, task.signature, partition_size=size)

    @cached_property
    def outbox(self) -> Outbox:
        """Updates on their way up; a node that only answers never looks, and holds no key."""
        return Outbox(self._store, self.ledger, node=self.name, key=self.identity.key)

    @cached_property
    def noise_multiplier(self) -> float:
        """Of every release in the plan that the node was enrolled with."""
        return self.ledger.budget.noise_multiplier(self.identity.settings.privacy.planned_releases)

    def session(self, base: Flat) -> tuple[Flat, int] | None:
        """One session of the plan from ``base``: its delta and the μ² units it was charged; None without examples.

        Raises:
            BudgetError: No partition can pay for it; nothing was released.
            TaskError: The model fails, or has other weights.
        """
        releases = self.identity.settings.session_releases
        return self._learner.learn(base, releases=releases, noise_multiplier=self.noise_multiplier)

    @cached_property
    def _learner(self) -> "Learner":
        from fleet.privacy.noise import LatticeGaussian
        from node.learner import Learner  # a node that only answers does without

        norm = self.identity.settings.privacy.clipping_norm
        return Learner(self.task, self.ledger, self.buffer, LatticeGaussian(), clipping_norm=norm)

    @property
    def name(self) -> str:
        """The node's name in the fleet."""
        return self.identity.name

    def close(self) -> None:
        """Let go of the store."""
        self._store.close()
