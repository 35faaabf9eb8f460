"""Everything of Flower that is not public, in one place, with a contract test for each name."""

import logging

from flwr.app import Context, Message, RecordDict
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["COORDINATOR_ID", "Run", "context", "empty_run", "identify", "number", "quieten"]

COORDINATOR_ID = 1


def quieten() -> None:
    """Keep Flower's logger, which sets its own level and handlers on import, to what ours is set to."""
    logger = logging.getLogger("flwr")
    logger.handlers.clear()
    logger.setLevel(logging.getLogger().getEffectiveLevel())


def identify(run_id: int) -> None:
    """Say which run this process plays: ``Message`` cannot be made before. One run a process."""
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = COORDINATOR_ID
    TaskIdentity.task_id = 0


def number(message: Message, message_id: str) -> None:
    """Give a message the id that a SuperLink would."""
    message.metadata.__dict__["_message_id"] = message_id


def empty_run(run_id: int) -> Run:
    """A run that no SuperLink knows."""
    return Run.create_empty(run_id=run_id)


def context(run_id: int, node_id: int) -> Context:
    """The context that a runtime would hand to an app."""
    return Context(run_id=run_id, node_id=node_id, node_config={}, state=RecordDict(), run_config={})
