"""What `edgefleet check` found, and the words for it."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know before running: an ``error`` stops the work, a ``warning`` has a price."""

    level: Level
    subject: str
    message: str


def failure(subject: str, message: str) -> Finding:
    """What stops the work."""
    return Finding("error", subject, message)


def said(error: BaseException) -> str:
    """What a foreign error says, on one line, and no more of it than one: it may quote a whole file."""
    first = str(error).strip().partition("\n")[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
