"""Everything of Flower that is not public, in one place, with a contract test for each name."""

import logging
from typing import Any

from flwr.app import DEFAULT_TTL, Context, Message, Metadata, RecordDict
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["COORDINATOR_ID", "Run", "context", "empty_run", "identify", "number", "of_no_run", "quieten"]

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


def of_no_run(content: RecordDict, message_type: str) -> Message:
    """A message that was never sent: it can be made by a process that plays no run."""
    message: Any = Message
    made: Message = message(content, metadata=Metadata(0, "", 0, 0, "", "", 0.0, DEFAULT_TTL, message_type))
    return made


def empty_run(run_id: int) -> Run:
    """A run that no SuperLink knows."""
    return Run.create_empty(run_id=run_id)


def context(run_id: int, node_id: int) -> Context:
    """The context that a runtime would hand to an app."""
    return Context(run_id=run_id, node_id=node_id, node_config={}, state=RecordDict(), run_config={})
