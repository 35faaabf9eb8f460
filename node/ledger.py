"""The append-only record of privacy spent: charged durably before anything noisy is released, never refunded."""

import sqlite3
from dataclasses import dataclass

from fleet.errors import BudgetError, TamperedError
from fleet.privacy.gaussian import Budget, charge_of
from fleet.signing import canonical, sha256
from node.store import transaction

GENESIS = "0" * 64


@dataclass(frozen=True, slots=True)
class Head:
    """The last charge: its number and the hash that chains all charges before it."""

    seq: int
    hash: str


class Ledger:
    """What each partition of this node's data has cost. The recorded epsilon is never below the true one.

    Partitions are disjoint sets of examples, so that the node's epsilon is the largest of theirs
    (parallel composition; Dwork and Roth 2014, section 3.5). Neighbours differ in one example that is blanked out
    and keeps its place (zero-out), for places decide partitions. The chain shows what was edited or taken out of
    its middle; that its newest charges are gone, as in a restored backup, is for the coordinator to see, who keeps
    the highest number that came with an update and refuses what comes below it.
    """

    def __init__(self, store: sqlite3.Connection, budget: Budget) -> None:
        """Open the ledger and check its chain.

        Raises:
            TamperedError: A charge was edited, removed or reordered.
        """
        self._store = store
        self.budget = budget
        self.verify()

    def charge(self, partition: str, *, noise_multiplier: float, releases: int, purpose: str) -> int:
        """Record ``releases`` planned releases durably; the μ² units charged. Only then may noise be drawn.

        Raises:
            BudgetError: They would pass the budget of the partition; nothing is recorded.
            ValueError: A private budget cannot pay for a release without noise, nor for fewer than one.
        """
        with transaction(self._store):
            return self.enter(partition, noise_multiplier=noise_multiplier, releases=releases, purpose=purpose)

    def enter(self, partition: str, *, noise_multiplier: float, releases: int, purpose: str) -> int:
        """As ``charge``, but inside the caller's transaction, which makes charge and noisy result durable at once.

        Nothing noisy may leave the node before that transaction is committed.
        """
        if releases < 1:
            raise ValueError(f"releases: {releases} must be 1 or more")
        if self.budget.private and not noise_multiplier > 0:
            raise ValueError(f"noise_multiplier: {noise_multiplier} hides nothing, epsilon is {self.budget.epsilon:g}")
        mu2 = releases * charge_of(noise_multiplier)
        left = self.budget.cap_mu2 - self.spent_mu2(partition)
        if mu2 > left:
            spent = self.epsilon(partition)
            raise BudgetError(f"{partition}: epsilon {spent:.3f} of {self.budget.epsilon:g} is spent")
        head = self.head()
        row = (head.seq + 1, partition, purpose, mu2, head.hash)
        self._store.execute("insert into charge values (?, ?, ?, ?, ?, ?)", (*row, _hash(row)))
        return mu2

    def head(self) -> Head:
        """The newest charge, or the genesis of an empty ledger."""
        row = self._store.execute("select seq, hash from charge order by seq desc limit 1").fetchone()
        return Head(*row) if row else Head(0, GENESIS)

    def spent_mu2(self, partition: str) -> int:
        """μ² units charged to ``partition``."""
        query = "select coalesce(sum(mu2), 0) from charge where partition = ?"
        return int(self._store.execute(query, (partition,)).fetchone()[0])

    def epsilon(self, partition: str | None = None) -> float:
        """The ε spent by ``partition``, or by the partition that spent most."""
        if partition is not None:
            return self.budget.spent_epsilon(self.spent_mu2(partition))
        query = "select coalesce(max(total), 0) from (select sum(mu2) as total from charge group by partition)"
        return self.budget.spent_epsilon(int(self._store.execute(query).fetchone()[0]))

    def charges(self) -> list[tuple[str, int]]:
        """The partition and the μ² units of every charge, oldest first."""
        return [(row[0], row[1]) for row in self._store.execute("select partition, mu2 from charge order by seq")]

    def verify(self) -> Head:
        """Walk the chain from its genesis; the head.

        Raises:
            TamperedError: A charge was edited, removed or reordered.
        """
        head = Head(0, GENESIS)
        for *row, digest in self._store.execute("select * from charge order by seq"):
            if row[0] != head.seq + 1 or row[4] != head.hash or digest != _hash(tuple(row)):
                raise TamperedError(f"ledger: charge {row[0]} does not follow charge {head.seq}")
            head = Head(row[0], digest)
        return head

    def contains(self, head: Head) -> bool:
        """Whether ``head`` is in this ledger's past; a restored backup lacks what came after it."""
        if head.seq == 0:
            return head.hash == GENESIS
        query = "select 1 from charge where seq = ? and hash = ?"
        return self._store.execute(query, (head.seq, head.hash)).fetchone() is not None


def _hash(row: tuple[int | str, ...]) -> str:
    return sha256(canonical(list(row)))
