"""What a fleet was enrolled under: its nodes go by these settings for life, so the coordinator must too."""

import json
from pathlib import Path
from typing import Any

from fleet import durable
from fleet.errors import SettingsError, TamperedError
from fleet.settings import Settings

# What nodes read of what they were welcomed with, and the step whose memory lies beside every base.
ROUND = ("rounds", "max_staleness", "server_step")


def keep_to(path: Path, settings: Settings, *, enrolled: bool) -> None:
    """Refuse settings other than those on record at ``path``, once nodes are enrolled; until then, put these there.

    A folder that has nodes and no record, made by an edgefleet that kept none, takes what it finds.

    Raises:
        SettingsError: Says which setting is another, and both values.
        TamperedError: The record cannot be read.
    """
    now = _agreed(settings)
    known = _read(path) if path.exists() else {}
    for name, value in now.items():
        if enrolled and (then := known.get(name, value)) != value:
            raise SettingsError(
                f"{name}: {value}, but the nodes of {path.parent} were enrolled under {then}: put that back, or begin "
                "anew in another folder"
            )
    if known != now:
        durable.write(path, json.dumps(now, indent=1).encode())


def _agreed(settings: Settings) -> dict[str, Any]:
    written = settings.to_json()
    privacy = {f"privacy.{name}": value for name, value in written["privacy"].items()}
    return privacy | {f"round.{name}": written["round"][name] for name in ROUND}


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TamperedError(f"{path} cannot be read: {error}") from error
    if not isinstance(known, dict):
        raise TamperedError(f"{path} cannot be read: it holds no settings")
    return known
