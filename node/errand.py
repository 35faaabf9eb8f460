"""What a node does in a process of its own, so that its memory goes back and its death hurts no answer.

``python -P -m node.errand`` reads one line of JSON, the order, and writes one, the outcome; it ends with its parent.
What else is printed meanwhile, by a task's code for example, goes to standard error.
"""

import json
import os
import sys
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fleet import task
from fleet.errors import FleetError, TaskError
from fleet.events import EventLog
from fleet.messages import UpdateInstruction
from fleet.parent import end_with_parent
from fleet.task import Task
from node.agent import Agent
from node.allowance import Allowance
from node.coordinator_client import CoordinatorClock
from node.enrolled import enrolled
from node.fetcher import HttpFetcher
from node.learning import Learning
from node.workshop import InProcess

NICENESS = 10


def main() -> None:
    """Run one errand; a known error is one line and its exit code."""
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr  # in one order with the error, which is the last line
    order = json.loads(sys.stdin.readline())
    end_with_parent()
    os.nice(NICENESS)
    try:
        outcome = _run(order)
    except FleetError as error:
        print(str(error), file=sys.stderr)
        sys.exit(error.exit_code)
    print(json.dumps(outcome), file=said, flush=True)


def _run(order: dict[str, Any]) -> dict[str, Any]:
    folder = Path(order["folder"])
    clock = CoordinatorClock(lambda: datetime.now(UTC))
    clock.offset = timedelta(seconds=order["offset_s"])
    wish = UpdateInstruction.of(order["wish"]) if order["wish"] else None
    with enrolled(folder) as node:
        task, allowance = node.identity.task, Allowance(node.store, order["daily_bytes"], clock)
        client = node.client(clock, node.transport(spend=allowance.spend))
        workshop = InProcess(HttpFetcher(client))
        if wish:
            workshop.learn(Learning(folder, code_of(node.membership.reference, task), clock=clock), wish)
            return {}
        record = EventLog(folder / "events.jsonl", clock).record(node.identity.name)
        rollout = workshop.pull(Agent(folder, task, workshop=workshop, clock=clock, record=record))
        return {"rollout": asdict(rollout) if rollout else None}


def code_of(reference: str, pinned: Task) -> Task:
    """The task with its code, if it is the one that this node was enrolled for.

    Raises:
        TaskError: It cannot be loaded, or is another task.
    """
    if not reference:
        raise TaskError("this node has no task code, so it cannot learn: enrol it with --task")
    file, _, name = reference.rpartition(":")
    found = task.load(f"{Path(file).name}:{name}" if file.endswith(".py") else reference, Path(file).parent)
    if found.spec() != pinned.spec():
        raise TaskError(f"{reference} is not the task that this node was enrolled for: install the one that was")
    return found


if __name__ == "__main__":
    main()
