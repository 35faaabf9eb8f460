"""What a stock ``flower-supernode`` runs on a device: our installed ClientApp, over the node of ``EDGEFLEET_NODE``.

Flower starts a process for every message, and nothing of ours runs in between: what a round asks for is learned before
the answer. ``edgefleet node run`` may answer and mind releases beside it, over the same folder.
"""

import os
from datetime import UTC, datetime
from pathlib import Path

from fleet.errors import UsageError
from fleet.signing import Sealed
from node.client_app import client_app
from node.coordinator_client import CoordinatorClock
from node.outbox import Parcel
from node.visit import visit

FOLDER = "EDGEFLEET_NODE"


class Visitor:
    """Answers for a node of which no process is running: opens it for as long as one answer takes."""

    def update(self, sealed: Sealed) -> Parcel | None:
        """As ``Agent.update``; learned here and now if it is not there."""
        with visit(_folder(), _clock()) as agent:
            parcel = agent.update(sealed)
            if parcel is None:
                agent.learn()
                parcel = agent.update(sealed)
            return parcel

    def report(self, sealed: Sealed) -> Sealed | None:
        """As ``Agent.report``."""
        with visit(_folder(), _clock()) as agent:
            return agent.report(sealed)


def _folder() -> Path:
    folder = os.environ.get(FOLDER)
    if not folder:
        raise UsageError(f"{FOLDER} is not set: it names the folder of an enrolled node")
    return Path(folder)


def _clock() -> CoordinatorClock:
    return CoordinatorClock(lambda: datetime.now(UTC))


app = client_app(Visitor())
