"""How far a run has come, over all its sittings: one small file in its folder."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fleet import durable
from fleet.errors import TamperedError
from fleet.signing import canonical

FILE = "progress.json"


@dataclass(slots=True)
class Progress:
    """How far a run has come.

    ``bases_down`` are the bases that devices pulled and ``bytes_down`` what they cost with the metadata of the same
    hours, without those of an hour that a kill cut short; ``joined`` is the hour in which each latecomer came.
    """

    hour: int = 0
    wall_s: float = 0.0
    bases_down: int = 0
    bytes_down: int = 0
    first_promotion_s: float | None = None
    joined: dict[str, int] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write it down, durably."""
        durable.write(folder / FILE, canonical(asdict(self)))


def read_progress(folder: Path) -> Progress:
    """How far the run of ``folder`` has come; a run that begins writes it down before anything else.

    Raises:
        TamperedError: It cannot be read, or is gone while the rest of the run is there.
    """
    path = folder / FILE
    if not path.exists() and not (folder / "coordinator").exists():
        Progress().save(folder)
    try:
        return Progress(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise TamperedError(f"{path} cannot be read: {error}") from error
