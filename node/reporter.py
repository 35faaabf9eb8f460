"""What a node says about a release: two noisy counts over windows that are used in one report only."""

import sqlite3
from typing import TYPE_CHECKING

from fleet.messages import Report, ReportInstruction, Watch
from fleet.privacy.release import Noise
from fleet.signing import Sealed
from node.ledger import Ledger
from node.shadow import Pair, Shadow
from node.store import transaction

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class Reporter:
    """Answers the coordinator's questions about a release.

    A live window is in one report only and in no training partition, so each report spends a budget of its own.
    """

    def __init__(
        self,
        store: sqlite3.Connection,
        ledger: Ledger,
        shadow: Shadow,
        noise: Noise,
        *,
        node: str,
        key: "Ed25519PrivateKey",
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._shadow = shadow
        self._noise = noise
        self._node = node
        self._key = key

    def answer(self, instruction: ReportInstruction) -> Sealed | None:
        """The report, the same bytes however often it is asked; None while the quota is not reached."""
        if stored := self._stored(instruction.release, instruction.watch):
            return stored
        pairs = self._shadow.unreported(instruction.release, instruction.watch)
        if not 0 < instruction.quota <= len(pairs):
            return None
        self._reserve(instruction, pairs[: instruction.quota])
        return self._stored(instruction.release, instruction.watch)

    def _reserve(self, instruction: ReportInstruction, pairs: list[Pair]) -> None:
        """Charge, mark the windows as used and store the noisy report, all in one transaction or none of it.

        Its noise is seen by nobody before it is committed: a node killed at any moment either has the report and
        paid for it, or has neither and draws other noise when it is asked again.
        """
        name = f"{instruction.watch}/{instruction.release}"
        multiplier = self._ledger.budget.report_noise
        with transaction(self._store):
            self._ledger.enter(f"live/{name}", noise_multiplier=multiplier, releases=1, purpose="report")
            sealed = self._report(instruction, pairs, multiplier).sealed(self._key)
            self._store.executemany("update reading set report = ? where seq = ?", [(name, p.seq) for p in pairs])
            self._store.execute(
                "insert into report values (?, ?, ?, ?)",
                (instruction.release, instruction.watch.value, sealed.body, sealed.signature),
            )

    def _report(self, instruction: ReportInstruction, pairs: list[Pair], multiplier: float) -> Report:
        # One window moves one of the two counts by one, so the sensitivity of the pair of counts is 1.
        won, lost = self._noise.integers(2, multiplier).tolist() if multiplier else (0, 0)
        head = self._ledger.head()
        return Report(
            node=self._node,
            task=instruction.task,
            release=instruction.release,
            watch=instruction.watch,
            quota=instruction.quota,
            won=won + sum(pair.harm < 0 for pair in pairs),
            lost=lost + sum(pair.harm > 0 for pair in pairs),
            ledger_seq=head.seq,
            ledger_head=head.hash,
        )

    def _stored(self, release: int, watch: Watch) -> Sealed | None:
        query = "select body, signature from report where release = ? and watch = ?"
        row = self._store.execute(query, (release, watch.value)).fetchone()
        return Sealed(*row) if row else None
