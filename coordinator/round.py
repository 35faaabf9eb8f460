"""One round: ask, admit, average. When it may close, and when it must."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum


class RoundState(StrEnum):
    """Where a round stands. One is open at most."""

    OPEN = "open"
    CLOSED = "closed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Round:
    """One ask: the base that nodes should learn from, since when and until when."""

    number: int
    base: int
    state: RoundState
    opened: datetime
    deadline: datetime


def is_due(rounds: Sequence[Round], *, plan: int, every: timedelta, now: datetime) -> bool:
    """Whether the timer opens a round now: none is open, the plan has rounds left, and the last began long ago."""
    if not rounds:
        return plan > 0
    last = rounds[-1]
    return last.state is not RoundState.OPEN and len(rounds) < plan and abs(now - last.opened) >= every


def verdict(round_: Round, *, admitted: int, asked: int, min_updates: int, now: datetime) -> RoundState:
    """What an open round becomes now: closed when all answered, or at its deadline by quorum; else it waits."""
    if admitted >= asked >= min_updates:
        return RoundState.CLOSED
    if abs(now - round_.opened) < round_.deadline - round_.opened:  # a clock that went back must not hold it open
        return RoundState.OPEN
    return RoundState.CLOSED if admitted >= min_updates else RoundState.FAILED
