"""A node's heavy work, done in this process: what the coordinator has on its shelf, and learning from a base."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from fleet import durable
from fleet.errors import TrustError
from fleet.messages import UpdateInstruction
from fleet.release import Rollout
from fleet.weights import Flat
from node.catalog import Catalog
from node.floors import SERVING
from node.installer import Fetcher, Installer
from node.learning import Learning

if TYPE_CHECKING:
    from node.agent import Agent

Session = Callable[[Learning, Flat], tuple[Flat, int] | None]
LOCK = "trust.lock"  # of the trusted metadata: who learns beside who pulls would disturb it


class InProcess:
    """Pulls with python-tuf and learns with torch right here: for simulations, and for the children of a real node."""

    def __init__(self, fetcher: Fetcher, *, url: str = "file:///", session: Session = Learning.session) -> None:
        """``fetcher`` brings what lies under ``url``; nothing it brings is trusted."""
        self._fetcher = fetcher
        self._url = url
        self._session = session
        self._shelf: Catalog | None = None

    def pull(self, agent: "Agent") -> Rollout | None:
        """Verify the newest metadata and stage the release it offers; who may serve what now.

        Raises:
            LinkError: The network failed.
            TrustError: What it offered must not be used.
        """
        with durable.held(agent.folder / LOCK, wait=True):
            catalog = self._catalog(agent)
            catalog.refresh()
            rollout = catalog.rollout()
            if rollout:
                agent.floors.raise_to({SERVING: rollout.serving})
                agent.serving.consider(rollout, catalog)
            return rollout

    def install(self, agent: "Agent") -> None:
        """Install the first release of a new node: the newest that everybody may serve.

        Raises:
            LinkError: The coordinator's shelf cannot be reached.
            TrustError: Nothing on it may be served.
        """
        with durable.held(agent.folder / LOCK, wait=True):
            catalog = self._catalog(agent)
            catalog.refresh()
            rollout = catalog.rollout()
            if rollout is None:
                raise TrustError(f"{agent.name}: the coordinator offers no release to begin with")
            agent.serving.provision(catalog, rollout.serving)

    def learn(self, node: Learning, wish: UpdateInstruction) -> None:
        """One session from the base that the instruction names, durably into the outbox.

        Raises:
            BudgetError: No partition can pay for it; nothing was released.
            LinkError: The base cannot be reached.
            TrustError: The base is not the one that the instruction names.
        """
        with durable.held(node.folder / LOCK, wait=True):
            catalog = self._catalog(node)
            if not catalog.has_base(wish.base):
                catalog.refresh()
            base, weights = catalog.base(wish.base)
        if base.payload != wish.base_digest:
            raise TrustError(f"base {wish.base} is not the one that the instruction names")
        session = self._session(node, weights)
        if session:
            node.outbox.put(*session, base=base.number, base_digest=base.payload)

    def _catalog(self, node: Learning) -> Catalog:
        if self._shelf is None:
            installer = Installer(
                node.folder / "trust",
                node.identity.root,
                self._fetcher,
                node.floors,
                clock=node.clock,
                url=self._url,
            )
            self._shelf = Catalog(installer)
        return self._shelf
