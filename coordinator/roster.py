"""Who is in the fleet."""

from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import Connection, Engine, delete, insert, select, update

from coordinator.admission import Member
from coordinator.tables import nodes, nonces
from fleet.enrolment import NAME
from fleet.errors import RefusedError, TamperedError

MOST_NONCES = (
    1000  # of one node at a time: each costs a durable write, and every errand of a node asks for its own token
)


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A node on record: the key of Flower's node authentication in PEM, empty if it has none, and Flower's id."""

    name: str
    flower_key: bytes
    flower_id: int
    revoked: bool


class Roster:
    """Enrolled nodes, their keys, and the highest ledger number that each sent with an update."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def enrol(self, name: str, key: Ed25519PublicKey, flower_id: int) -> None:
        """Add a node to the fleet; doing it again with the same key changes Flower's id of it, and nothing else.

        Raises:
            TamperedError: The name is taken by another key.
        """
        with self._engine.begin() as connection:
            known = connection.execute(select(nodes.c.public_key).where(nodes.c.name == name)).scalar()
            if known is None:
                add_node(connection, name, key.public_bytes_raw(), None, flower_id)
            elif known != key.public_bytes_raw():
                raise TamperedError(f"node {name} is enrolled with another key")
            else:
                connection.execute(update(nodes).where(nodes.c.name == name).values(flower_id=signed(flower_id)))

    def entries(self) -> list[Enrolled]:
        """Everybody who was ever enrolled, by name."""
        with self._engine.begin() as connection:
            rows = connection.execute(select(nodes).order_by(nodes.c.name))
            return [Enrolled(r.name, r.flower_key or b"", unsigned(r.flower_id), r.revoked) for r in rows]

    def renumber(self, name: str, flower_id: int) -> None:
        """Flower forgot a node and numbered it again."""
        with self._engine.begin() as connection:
            connection.execute(update(nodes).where(nodes.c.name == name).values(flower_id=signed(flower_id)))

    def spend_nonce(self, name: str, nonce: str, *, expires: datetime, now: datetime) -> None:
        """Remember that a node used this nonce, until requests that carry it are too old anyway.

        Raises:
            RefusedError: ``replayed``: it was used before; ``rate``: the node used ``MOST_NONCES`` of late.
        """
        of_node = nonces.c.node == name  # and no other's: what one node does costs none of the others
        with self._engine.begin() as connection:
            connection.execute(delete(nonces).where(of_node, nonces.c.expires < now))
            used = set(connection.execute(select(nonces.c.nonce).where(of_node)).scalars())
            if nonce in used:
                raise RefusedError("replayed", "this request was answered before: make a new one")
            if len(used) >= MOST_NONCES:
                raise RefusedError("rate", f"{name} asked for {len(used)} tokens of late: come back later")
            connection.execute(insert(nonces).values(node=name, nonce=nonce, expires=expires))

    def revoke(self, name: str) -> None:
        """Take a node out of the fleet, and out of every aggregate that is still to come."""
        with self._engine.begin() as connection:
            connection.execute(update(nodes).where(nodes.c.name == name).values(revoked=True))

    def member(self, name: str) -> Member | None:
        """The node of this name, even a revoked one; None where a stranger sends what is no name at all."""
        if not NAME.fullmatch(name):
            return None
        with self._engine.begin() as connection:
            row = connection.execute(select(nodes).where(nodes.c.name == name)).one_or_none()
        if row is None:
            return None
        return Member(row.name, Ed25519PublicKey.from_public_bytes(row.public_key), row.revoked, row.ledger_seq)

    def active(self) -> dict[str, int]:
        """Flower's id of each node that was not revoked."""
        columns = (nodes.c.name, nodes.c.flower_id)
        with self._engine.begin() as connection:
            rows = connection.execute(select(*columns).where(~nodes.c.revoked).order_by(nodes.c.name))
            return {row[0]: unsigned(row[1]) for row in rows}


def add_node(connection: Connection, name: str, key: bytes, flower_key: bytes | None, flower_id: int) -> None:
    """Put a node on record, inside the caller's transaction."""
    row = {"name": name, "public_key": key, "flower_key": flower_key, "flower_id": signed(flower_id)}
    connection.execute(insert(nodes).values(row))


def signed(number: int) -> int:
    """Flower's ids have 64 bits without a sign, a database's integers have one."""
    return number - 2**64 if number >= 2**63 else number


def unsigned(number: int) -> int:
    """The id that ``signed`` stored."""
    return number % 2**64


def raise_ledger(connection: Connection, name: str, seq: int) -> None:
    """Remember the highest ledger number of a node, inside the caller's transaction."""
    connection.execute(update(nodes).where(nodes.c.name == name, nodes.c.ledger_seq < seq).values(ledger_seq=seq))
