"""Who may join: one secret enrols one node, once."""

from collections.abc import Callable
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine, delete, insert, select, update

from coordinator.roster import add_node, unsigned
from coordinator.tables import invitations, nodes
from fleet.enrolment import Enrolment
from fleet.errors import RefusedError
from fleet.signing import sha256


class Invitations:
    """Invitations that are out. The secrets themselves are nowhere on record."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def invite(self, name: str, secret: str, *, expires: datetime) -> None:
        """Let the holder of ``secret`` enrol as ``name``; an older invitation of that name is void.

        Raises:
            RefusedError: ``name-taken``: such a node is or was enrolled. A name is given once, for the record's sake.
        """
        with self._engine.begin() as connection:
            _check_free(connection, name)
            connection.execute(delete(invitations).where(invitations.c.name == name))
            digest = sha256(secret.encode())
            connection.execute(insert(invitations).values(secret=digest, name=name, expires=expires))

    def redeem(self, request: Enrolment, *, now: datetime, register: Callable[[], int]) -> int:
        """Enrol a node that proved its keys; Flower's id of it. The same request again gives the same answer.

        Args:
            register: Makes the node known to Flower, or finds it again, and gives its id there; not called for one
                that is refused.

        Raises:
            RefusedError: ``invitation``: there is no such invitation, it was used or expired, or the keys are a node's.
        """
        key, flower_key = request.key.public_bytes_raw(), request.flower_key.encode()
        with self._engine.begin() as connection:
            secret = sha256(request.secret.encode(errors="surrogatepass"))  # JSON may hold half a character
            row = connection.execute(select(invitations).where(invitations.c.secret == secret)).one_or_none()
            if row is None or row.name != request.name:
                raise RefusedError("invitation", f"there is no such invitation for {request.name[:80]!r}")
            if row.used_by is not None:
                return _same_node(connection, request.name, key, flower_key)
            if row.expires.replace(tzinfo=UTC) <= now:
                raise RefusedError("invitation", "the invitation expired: ask for another")
            _check_free(connection, request.name)
            _check_new(connection, key, flower_key)
            flower_id = register()
            add_node(connection, request.name, key, flower_key, flower_id)
            connection.execute(update(invitations).where(invitations.c.secret == secret).values(used_by=key))
        return flower_id


def _check_free(connection: Connection, name: str) -> None:
    if connection.execute(select(nodes.c.name).where(nodes.c.name == name)).one_or_none() is not None:
        raise RefusedError("name-taken", f"{name} is or was enrolled: choose another name")


def _check_new(connection: Connection, key: bytes, flower_key: bytes) -> None:
    """One device is one node: its keys under two names would count twice in a mean."""
    known = select(nodes.c.name).where((nodes.c.public_key == key) | (nodes.c.flower_key == flower_key))
    if name := connection.execute(known).scalar():
        raise RefusedError("invitation", f"these keys are enrolled as {name}: choose another --folder")


def _same_node(connection: Connection, name: str, key: bytes, flower_key: bytes) -> int:
    """The answer got lost, and the node asks again: only the one that was enrolled may."""
    node = connection.execute(select(nodes).where(nodes.c.name == name)).one()
    if (node.public_key, node.flower_key, node.revoked) != (key, flower_key, False):
        raise RefusedError("invitation", "the invitation was used: ask for another")
    return unsigned(node.flower_id)
