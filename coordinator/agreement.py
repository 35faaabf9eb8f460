"""What a fleet was enrolled under: its nodes keep this task and these settings for life, so the coordinator must."""

import json
from pathlib import Path
from typing import Any

from fleet import durable
from fleet.errors import SettingsError, TamperedError
from fleet.settings import Settings
from fleet.task import Task

# What nodes read of what they were welcomed with, and the step whose memory lies beside every base.
ROUND = ("rounds", "max_staleness", "server_step")


def keep_to(path: Path, task: Task, settings: Settings, *, enrolled: bool) -> None:
    """Refuse other than what is on record at ``path``, once nodes are enrolled; until then, put this there.

    A folder that has nodes and no record, made by an edgefleet that kept none, takes what it finds.

    Raises:
        SettingsError: Says which setting is another, and both values.
        TamperedError: The record cannot be read.
    """
    now = _agreed(task, settings)
    known = _read(path) if path.exists() else {}
    for name, value in now.items():
        if enrolled and (then := known.get(name, value)) != value:
            raise SettingsError(
                f"{name}: {value}, but the nodes of {path.parent} were enrolled under {then}: put that back, or begin "
                "anew in another folder"
            )
    if known != now:
        durable.write(path, json.dumps(now, indent=1).encode())


def _agreed(task: Task, settings: Settings) -> dict[str, Any]:
    parts = {f"task.{part}": fields for part, fields in task.spec().items() if part != "name"}
    written = settings.to_json()
    parts |= {"privacy": written["privacy"], "round": {name: written["round"][name] for name in ROUND}}
    agreed = {f"{part}.{name}": value for part, fields in parts.items() for name, value in fields.items()}
    read_again: dict[str, Any] = json.loads(json.dumps({"task.name": task.name} | agreed))
    return read_again


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TamperedError(f"{path} cannot be read: {error}") from error
    if not isinstance(known, dict):
        raise TamperedError(f"{path} cannot be read: it holds no settings")
    return known
