"""Sessions waiting to be asked for; once bound to a round, the same bytes however often they are asked for."""

import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fleet.messages import CODEC, Update, UpdateInstruction, encode, update_key
from fleet.signing import Sealed, sha256
from fleet.weights import Flat
from node.ledger import Ledger
from node.store import transaction

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class Parcel:
    """A signed update and the bytes of its delta."""

    sealed: Sealed
    payload: bytes


class Outbox:
    """Updates on their way up. A session is bound to one round for ever, so that it is counted at most once."""

    def __init__(self, store: sqlite3.Connection, ledger: Ledger, *, node: str, key: "Ed25519PrivateKey") -> None:
        self._store = store
        self._ledger = ledger
        self._node = node
        self._key = key

    def put(self, delta: Flat, mu2: int, *, base: int, base_digest: str) -> None:
        """Store a session's delta durably before anybody can ask for it."""
        self._store.execute(
            "insert into session (base, base_digest, mu2, payload) values (?, ?, ?, ?)",
            (base, base_digest, mu2, encode(delta)),
        )

    def waiting(self, base: int) -> bool:
        """Whether a session from ``base`` has not been bound to a round."""
        query = "select 1 from session where round is null and base = ?"
        return self._store.execute(query, (base,)).fetchone() is not None

    def unsent(self) -> list[int]:
        """Bases of the sessions that no round has taken, oldest session first."""
        return [row[0] for row in self._store.execute("select base from session where round is null order by seq")]

    def answered(self, round_: int) -> bool:
        """Whether a session is bound to ``round_``."""
        return self._store.execute("select 1 from session where round = ?", (round_,)).fetchone() is not None

    def answer(self, instruction: UpdateInstruction, *, max_staleness: int) -> Parcel | None:
        """The update of the instruction's round, or None if there is nothing yet: then nothing changes."""
        if not self.answered(instruction.round):
            self._bind(instruction, max_staleness)
        query = "select body, signature, payload from session where round = ?"
        row = self._store.execute(query, (instruction.round,)).fetchone()
        return Parcel(Sealed(row[0], row[1]), row[2]) if row else None

    def sizes(self) -> list[int]:
        """Bytes of each update that was bound to a round: signed fields, signature and delta."""
        query = "select length(body) + length(signature) + length(payload) from session where round is not null"
        return [row[0] for row in self._store.execute(query)]

    def _bind(self, instruction: UpdateInstruction, max_staleness: int) -> None:
        query = (
            "select seq, base, base_digest, mu2, payload from session "
            "where round is null and base >= ? order by base desc, seq desc limit 1"
        )
        with transaction(self._store):
            row = self._store.execute(query, (instruction.base - max_staleness,)).fetchone()
            if row is None:
                return
            seq, base, base_digest, mu2, payload = row
            sealed = self._seal(instruction, base, base_digest, mu2, payload)
            self._store.execute(
                "update session set round = ?, body = ?, signature = ? where seq = ?",
                (instruction.round, sealed.body, sealed.signature, seq),
            )

    def _seal(self, instruction: UpdateInstruction, base: int, base_digest: str, mu2: int, payload: bytes) -> Sealed:
        head = self._ledger.head()
        return Update(
            node=self._node,
            task=instruction.task,
            round=instruction.round,
            base=base,
            base_digest=base_digest,
            key=update_key(self._node, instruction.task, instruction.round, base_digest),
            codec=CODEC,
            payload_digest=sha256(payload),
            spent_mu2=mu2,
            ledger_seq=head.seq,
            ledger_head=head.hash,
        ).sealed(self._key)
