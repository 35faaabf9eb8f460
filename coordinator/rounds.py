"""Rounds, the updates admitted to them, and the bases they end in."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, Row, func, insert, select, update

from coordinator.admission import Admitted
from coordinator.aggregation import Entry
from coordinator.roster import raise_ledger
from coordinator.round import Round, RoundState
from coordinator.tables import bases, nodes, refusals, rounds, updates
from fleet.errors import RefusedError, TamperedError

MOST_REFUSALS = 20  # of one node in one round: it is asked again and again, and must not fill the disk


@dataclass(frozen=True, slots=True)
class BaseRow:
    """A base on record: digests of its payload, of the master it was quantized from, and of the step's memory."""

    number: int
    round: int
    payload: str
    master: str
    memory: str
    published: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reply that was not admitted, and why."""

    round: int
    node: str
    code: str
    reason: str


class Rounds:
    """The journal of the way up. An update is in at most one aggregate, once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def open(self, base: int, opened: datetime, deadline: datetime) -> Round:
        """Open the next round.

        Raises:
            TamperedError: Another round is open; there is one at a time.
        """
        with self._engine.begin() as connection:
            if _open_round(connection) is not None:
                raise TamperedError("a round is open already")
            number = (connection.execute(select(func.max(rounds.c.number))).scalar() or 0) + 1
            round_ = Round(number, base, RoundState.OPEN, opened, deadline)
            state = RoundState.OPEN.value
            row = {"number": number, "base": base, "state": state, "opened": opened, "deadline": deadline}
            connection.execute(insert(rounds).values(row))
        return round_

    def current(self) -> Round | None:
        """The open round, if there is one."""
        with self._engine.begin() as connection:
            return _open_round(connection)

    def all(self) -> list[Round]:
        """All rounds, oldest first."""
        with self._engine.begin() as connection:
            return [_round(row) for row in connection.execute(select(rounds).order_by(rounds.c.number))]

    def fail(self, number: int) -> None:
        """End a round that did not reach its quorum; its updates are in no aggregate."""
        with self._engine.begin() as connection:
            _set_state(connection, number, RoundState.FAILED)

    def accept(self, admitted: Admitted, payload: str) -> bool:
        """Put an admitted update on record; False if these very bytes are on record already.

        When this returns, the update is acknowledged and durable.

        Raises:
            RefusedError: ``replayed``: the node answered this round with something else before.
        """
        given = admitted.update
        with self._engine.begin() as connection:
            query = select(updates.c.key, updates.c.payload)
            query = query.where(updates.c.round == given.round, updates.c.node == given.node)
            known = connection.execute(query).one_or_none()
            if known is not None:
                if tuple(known) == (given.key, payload):
                    return False
                raise RefusedError("replayed", f"{given.node} answered round {given.round} before")
            connection.execute(
                insert(updates).values(
                    key=given.key,
                    round=given.round,
                    node=given.node,
                    base=given.base,
                    payload=payload,
                    norm=admitted.norm,
                )
            )
            raise_ledger(connection, given.node, given.ledger_seq)
        return True

    def refuse(self, refusal: Refusal) -> None:
        """Record why a reply was dropped; not more than ``MOST_REFUSALS`` times a node and round."""
        row = {"round": refusal.round, "node": refusal.node, "code": refusal.code, "reason": refusal.reason}
        of_node = refusals.c.round == refusal.round, refusals.c.node == refusal.node
        with self._engine.begin() as connection:
            known = connection.execute(select(func.count()).select_from(refusals).where(*of_node)).scalar_one()
            if known < MOST_REFUSALS:
                connection.execute(insert(refusals).values(row))

    def refusals(self) -> list[Refusal]:
        """All refusals, oldest first."""
        columns = (refusals.c.round, refusals.c.node, refusals.c.code, refusals.c.reason)
        with self._engine.begin() as connection:
            return [Refusal(*row) for row in connection.execute(select(*columns).order_by(refusals.c.seq))]

    def answered(self, round_: int) -> set[str]:
        """Nodes whose update for the round is on record."""
        with self._engine.begin() as connection:
            return set(connection.execute(select(updates.c.node).where(updates.c.round == round_)).scalars())

    def entries(self, round_: Round) -> list[Entry]:
        """Updates that the round's aggregate is made of; none of a node that was revoked meanwhile."""
        with self._engine.begin() as connection:
            return _entries(connection, round_)

    def closed(self) -> int:
        """How many rounds ended in a base."""
        return sum(round_.state is RoundState.CLOSED for round_ in self.all())

    def counted(self) -> int:
        """How many updates are in an aggregate."""
        query = select(func.count()).select_from(updates).where(updates.c.aggregate.is_not(None))
        with self._engine.begin() as connection:
            return connection.execute(query).scalar_one()

    def close(self, round_: Round, base: BaseRow, counted: Sequence[Entry]) -> bool:
        """Close a round: its updates are counted, once, and its base has its number for ever. One transaction.

        False, and nothing is changed, if ``counted`` are not the round's entries any more: a node was revoked.
        """
        with self._engine.begin() as connection:
            if _entries(connection, round_) != counted:
                return False
            _set_state(connection, round_.number, RoundState.CLOSED)
            _insert_base(connection, base)
            for entry in counted:
                query = update(updates).where(updates.c.key == entry.key, updates.c.aggregate.is_(None))
                if connection.execute(query.values(aggregate=base.number)).rowcount != 1:
                    raise TamperedError(f"update {entry.key[:12]} is in an aggregate already")
        return True

    def add_bases(self, *made: BaseRow) -> None:
        """Record bases that no round made: the warm start, or weights that an operator brought."""
        with self._engine.begin() as connection:
            for base in made:
                _insert_base(connection, base)

    def mark_published(self, number: int) -> None:
        """Record that a base is on the shelf."""
        with self._engine.begin() as connection:
            connection.execute(update(bases).where(bases.c.number == number).values(published=True))

    def bases(self) -> list[BaseRow]:
        """All bases, oldest first."""
        with self._engine.begin() as connection:
            return [BaseRow(*row) for row in connection.execute(select(bases).order_by(bases.c.number))]


def _entries(connection: Connection, round_: Round) -> list[Entry]:
    query = select(updates).join(nodes, nodes.c.name == updates.c.node)
    query = query.where(updates.c.round == round_.number, ~nodes.c.revoked)
    rows = connection.execute(query.order_by(updates.c.key))
    return [Entry(row.key, row.payload, row.norm, round_.base - row.base) for row in rows]


def _open_round(connection: Connection) -> Round | None:
    row = connection.execute(select(rounds).where(rounds.c.state == RoundState.OPEN.value)).one_or_none()
    return None if row is None else _round(row)


def _round(row: Row[Any]) -> Round:
    opened, deadline = row.opened.replace(tzinfo=UTC), row.deadline.replace(tzinfo=UTC)
    return Round(row.number, row.base, RoundState(row.state), opened, deadline)


def _set_state(connection: Connection, number: int, state: RoundState) -> None:
    query = update(rounds).where(rounds.c.number == number, rounds.c.state == RoundState.OPEN.value)
    if connection.execute(query.values(state=state.value)).rowcount != 1:
        raise TamperedError(f"round {number} is not open")


def _insert_base(connection: Connection, base: BaseRow) -> None:
    row = {name: getattr(base, name) for name in ("number", "round", "payload", "master", "memory", "published")}
    connection.execute(insert(bases).values(row))
