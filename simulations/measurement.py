"""What was measured of a run: a line of JSON for each row of ``measurements.jsonl``."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from fleet import durable

FILE = "measurements.jsonl"


@dataclass(frozen=True, slots=True)
class Seen:
    """A device: its labelled windows, what it answered, what it sent. ``held_out`` ones judge and take no part."""

    device: str
    person: str
    held_out: bool
    train: int
    live: int
    answers: int = 0
    updates: int = 0
    bytes_up: int = 0

    @property
    def judged(self) -> int:
        """Windows on which a base is judged: all of a device held out, else those that came after the training ones."""
        return self.live + (self.train if self.held_out else 0)


@dataclass(frozen=True, slots=True)
class Judged:
    """How many of each device's judged windows a base named rightly; ``precision`` is ``int8`` or ``float32``."""

    base: int
    precision: str
    right: dict[str, int]


@dataclass(frozen=True, slots=True)
class Own:
    """Live windows that a device names rightly after ``labels`` windows of its own, without any noise.

    ``alone`` began with the task's first weights, ``personal`` with the fleet's last base; None where that was not
    measured.
    """

    device: str
    labels: int
    alone: int | None
    personal: int | None


@dataclass(frozen=True, slots=True)
class Lent:
    """Windows of the devices held out that the model of one single device names rightly."""

    device: str
    right: int


@dataclass(frozen=True, slots=True)
class Spent:
    """What a device's ledger holds: ε after each session, and of its most expensive report; None without privacy."""

    device: str
    sessions: list[float | None]
    reports: int
    report: float | None


Row = Seen | Judged | Own | Lent | Spent
KINDS = {kind.__name__.lower(): kind for kind in (Seen, Judged, Own, Lent, Spent)}


@dataclass(frozen=True, slots=True)
class Measurements:
    """All rows, by kind."""

    seen: tuple[Seen, ...] = ()
    judged: tuple[Judged, ...] = ()
    own: tuple[Own, ...] = ()
    lent: tuple[Lent, ...] = ()
    spent: tuple[Spent, ...] = ()

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Measurements":
        """The rows, sorted by kind; each kind keeps its order."""
        rows = list(rows)
        return cls(
            seen=tuple(row for row in rows if isinstance(row, Seen)),
            judged=tuple(row for row in rows if isinstance(row, Judged)),
            own=tuple(row for row in rows if isinstance(row, Own)),
            lent=tuple(row for row in rows if isinstance(row, Lent)),
            spent=tuple(row for row in rows if isinstance(row, Spent)),
        )

    def save(self, folder: Path) -> None:
        """Write the rows into a run's folder."""
        rows: list[Row] = [*self.seen, *self.judged, *self.own, *self.lent, *self.spent]
        lines = [json.dumps({"kind": type(row).__name__.lower(), **asdict(row)}) + "\n" for row in rows]
        durable.write(folder / FILE, "".join(lines).encode())

    @classmethod
    def load(cls, folder: Path) -> "Measurements":
        """The rows of a run's folder: what ``save`` wrote."""
        lines = (folder / FILE).read_text(encoding="utf-8").splitlines()
        return cls.of(KINDS[row.pop("kind")](**row) for row in map(json.loads, lines))
