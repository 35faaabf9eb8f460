"""How a node begins: an identity is pinned once, and the first release installed."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from fleet.events import Record, ignore
from fleet.task import Task
from node.admission import Admit, admit
from node.agent import Agent
from node.identity import Identity
from node.store import open_store, undamaged
from node.workshop import InProcess


def provision(
    folder: Path,
    identity: Callable[[], Identity],
    task: Task,
    *,
    workshop: InProcess,
    clock: Callable[[], datetime],
    admit: Admit = admit,
    record: Record = ignore,
) -> Agent:
    """Open a node; if it is new, pin an identity and install the release that everybody may serve.

    Interrupted and called again, it goes on where it was.

    Raises:
        LinkError: The coordinator's shelf cannot be reached.
        TamperedError: What is stored was altered.
        TrustError: What the coordinator offers must not be used.
    """
    with undamaged(folder / "node.db"):
        store = open_store(folder / "node.db")
        if Identity.load(store) is None:
            identity().save(store)
        store.close()
        agent = Agent(folder, task, workshop=workshop, clock=clock, admit=admit, record=record)
    if agent.serving.active is None:
        workshop.install(agent)
    return agent
