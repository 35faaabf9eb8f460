"""Our ServerApp for a stock SuperLink, as ``flwr run`` starts it: the coordinator of ``EDGEFLEET_COORDINATOR``.

All is as with ``edgefleet coordinator serve``, devices' and operator's doors too, but Flower's messages go through the
SuperLink whose run this is. The run ends when the planned rounds are played and no rollout is left.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from coordinator.api.problems import response
from coordinator.reply import Longest
from coordinator.serve import Plan, serving
from coordinator.waiting_grid import WaitingGrid
from fleet import flwr_compat
from fleet.errors import UsageError
from fleet.flwr_compat import Run
from fleet.signing import sha256

FOLDER = "EDGEFLEET_COORDINATOR"

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Serve until there is nothing left to play."""
    with serving(_plan(context), StockSuperLink(grid)) as running:
        running.run()


class StockSuperLink:
    """A SuperLink that others run. It names nodes by their keys: its own ids are known only while a node is online."""

    def __init__(self, grid: Grid) -> None:
        self.app = response("not-found", "Flower's Fleet API is elsewhere: on its own SuperLink")
        self._grid = grid

    def register(self, key: bytes) -> int:
        """The id that we give the node with this key (PEM); the operator registers the key with the SuperLink."""
        return _id_of(key)

    def knows(self, headers: Mapping[bytes, bytes]) -> bool:
        """Nobody: nodes speak to Flower elsewhere."""
        return False

    def unregister(self, key: bytes) -> None:
        """Nothing: we do not ask the node again, and the operator unregisters its key."""

    def online(self) -> set[int]:
        """Our ids of the nodes that are online."""
        return {_id_of(node.public_key) for node in self._grid.get_nodes()}

    def grid(self, *, wait: Callable[[], None], longest: Longest) -> "StockGrid":
        """The run. Flower reads replies of any length: ``longest`` is checked by admission only."""
        return StockGrid(self._grid, wait)


class StockGrid(WaitingGrid):
    """Flower's Grid with our ids of the nodes."""

    def __init__(self, grid: Grid, wait: Callable[[], None]) -> None:
        super().__init__(wait)
        self._grid = grid
        self._ours: dict[int, int] = {}  # by Flower's

    def set_run(self, run: Run) -> None:
        """Play another run."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run being played."""
        return self._grid.run

    def get_node_ids(self) -> Iterable[int]:
        """Our ids of the nodes that are online."""
        online = {node.node_id: _id_of(node.public_key) for node in self._grid.get_nodes()}
        self._ours |= online
        return set(online.values())

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Leave messages for nodes to pull; the ids under which replies can be pulled."""
        theirs = {ours: id_ for id_, ours in self._ours.items()}
        return self._grid.push_messages([_readdressed(message, theirs) for message in messages])

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Replies that have arrived."""
        wanted = list(message_ids)
        for reply in self._grid.pull_messages(wanted) if wanted else []:
            flwr_compat.ascribe(reply, self._ours.get(reply.metadata.src_node_id, 0))
            yield reply

    def forget(self) -> None:
        """Nothing: a question without an answer expires."""

    def stay_alive(self) -> None:
        """Nothing: Flower's own thread says that the run goes on."""

    def end(self) -> None:
        """Nothing: Flower ends the run when ``main`` returns."""


def _id_of(key: bytes) -> int:
    return int(sha256(key)[:16], 16)


def _readdressed(message: Message, theirs: dict[int, int]) -> Message:
    metadata = message.metadata
    return Message(message.content, theirs[metadata.dst_node_id], metadata.message_type, ttl=metadata.ttl)


def _plan(context: Context) -> Plan:
    folder = os.environ.get(FOLDER)
    if not folder:
        raise UsageError(f"{FOLDER} is not set: it names the coordinator's folder")
    config = {name: str(value) for name, value in context.run_config.items()}
    certificate, key, authority = (
        Path(config[name]) if config[name] else None for name in ("certificate", "key", "authority")
    )
    return Plan(
        Path(folder),
        host=config["host"],
        port=int(config["port"]),
        url=config["url"],
        certificate=certificate,
        key=key,
        authority=authority,
    )
