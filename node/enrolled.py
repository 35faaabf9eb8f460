"""An enrolled node's folder, opened: who it is, and the way to its coordinator."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fleet.errors import TrustError
from node.coordinator_client import CoordinatorClient, CoordinatorClock
from node.identity import Identity, require_node
from node.membership import Membership
from node.store import open_store
from node.transport import Spend, Transport


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A node and its coordinator; ``store`` is open for as long as the ``with`` lasts."""

    store: sqlite3.Connection
    identity: Identity
    membership: Membership

    def client(self, clock: CoordinatorClock, transport: Transport) -> CoordinatorClient:
        """Asks the coordinator in this node's name."""
        return CoordinatorClient(transport, clock, node=self.identity.name, key=self.identity.key)

    def transport(self, *, spend: Spend | None = None) -> Transport:
        """To the pinned coordinator and to nobody else; ``spend`` is told what a metered link carried."""
        return Transport(self.membership.url, authority=self.membership.authority or None, spend=spend)


@contextmanager
def enrolled(folder: Path) -> Iterator[Enrolled]:
    """Open a node's folder.

    Raises:
        TrustError: It belongs to no node, or to one that did not finish joining.
    """
    require_node(folder)
    with closing(open_store(folder / "node.db")) as store:
        identity, membership = Identity.load(store), Membership.load(store)
        if identity is None or membership is None:
            raise TrustError(f"{folder} was never enrolled: 'edgefleet node enrol INVITATION' goes on with it")
        yield Enrolled(store, identity, membership)
