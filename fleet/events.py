"""What happened, one line of JSON an event, for people who ask later."""

import json
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from fleet import durable

MAX_BYTES = 16 * 2**20  # of one file; there are two at most
LONGEST_TEXT = 500  # characters of a field: what comes from outside may be a megabyte


class Record(Protocol):
    """Takes down one event: its name in the past tense, and fields that hold no secret and no reading."""

    def __call__(self, event: str, **fields: Any) -> None: ...


def ignore(event: str, **fields: Any) -> None:
    """Record nothing."""


def sparing(record: Record, *, lines: int = 100, clock: Callable[[], float] = time.monotonic) -> Record:
    """``record`` for what strangers cause: so many events at once, and one a second after that.

    Whoever floods us fills no disk, and pushes nothing else out of the log.
    """
    left, since, lock = float(lines), clock(), Lock()

    def spared(event: str, **fields: Any) -> None:
        nonlocal left, since
        with lock:
            now = clock()
            left, since = min(float(lines), left + now - since), now
            if left < 1:
                return
            left -= 1
        record(event, **fields)

    return spared


class EventLog:
    """Appends events to a file. A log is a witness, never the truth: nothing is ever read back to decide.

    Nothing fails because an event cannot be written, on a full disk for example: the next that can be says in
    ``lost`` how many could not.
    """

    def __init__(self, path: Path, clock: Callable[[], datetime]) -> None:
        self._path = path
        self._clock = clock
        self._lost = 0

    def record(self, who: str) -> Record:
        """The recorder of one program."""

        def record(event: str, **fields: Any) -> None:
            told = {name: value[:LONGEST_TEXT] if isinstance(value, str) else value for name, value in fields.items()}
            line = {"at": self._clock().isoformat(), "who": who, "event": event, **told}
            if self._lost:
                line["lost"] = self._lost
            try:
                durable.append_line(self._path, json.dumps(line), max_bytes=MAX_BYTES)
                self._lost = 0
            except OSError:
                self._lost += 1

        return record


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of one file, oldest first, without what a power cut left half written."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            fields = json.loads(line)
            zone = datetime.fromisoformat(fields["at"]).tzinfo
        except (ValueError, TypeError, KeyError):
            continue
        if zone and {"who", "event"} <= fields.keys():
            yield fields
