"""Who is in the fleet."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import Connection, Engine, insert, select, update

from coordinator.admission import Member
from coordinator.tables import nodes
from fleet.errors import TamperedError


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
                row = {"name": name, "public_key": key.public_bytes_raw(), "flower_id": str(flower_id)}
                connection.execute(insert(nodes).values(row))
            elif known != key.public_bytes_raw():
                raise TamperedError(f"node {name} is enrolled with another key")
            else:
                connection.execute(update(nodes).where(nodes.c.name == name).values(flower_id=str(flower_id)))

    def revoke(self, name: str) -> None:
        """Take a node out of the fleet, and out of every aggregate that is still to come."""
        with self._engine.begin() as connection:
            connection.execute(update(nodes).where(nodes.c.name == name).values(revoked=True))

    def members(self) -> dict[str, Member]:
        """All nodes ever enrolled, revoked ones too."""
        with self._engine.begin() as connection:
            rows = connection.execute(select(nodes))
            return {
                row.name: Member(
                    row.name, Ed25519PublicKey.from_public_bytes(row.public_key), row.revoked, row.ledger_seq
                )
                for row in rows
            }

    def active(self) -> dict[str, int]:
        """Flower's id of each node that was not revoked."""
        columns = (nodes.c.name, nodes.c.flower_id)
        with self._engine.begin() as connection:
            rows = connection.execute(select(*columns).where(~nodes.c.revoked).order_by(nodes.c.name))
            return {row[0]: int(row[1]) for row in rows}


def raise_ledger(connection: Connection, name: str, seq: int) -> None:
    """Remember the highest ledger number of a node, inside the caller's transaction."""
    connection.execute(update(nodes).where(nodes.c.name == name, nodes.c.ledger_seq < seq).values(ledger_seq=seq))
