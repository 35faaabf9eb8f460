"""When a node talks next: pure functions of what happened, the time, and one random number in [0, 1)."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

FLOOR_S = 1.0
CAP_S = 60.0
ASKED_S = 2.0  # at most this long between two polls while a round waits for this node
IDLE_S = 300.0  # until the coordinator suggests something else
OWED_S = 600.0  # a coordinator that asked and vanished is polled in seconds for this long
LONGEST_S = 3600.0  # nobody can tell a node to stay away for longer
DAWN_S = 3600.0  # over how long the nodes of metered links come back after midnight, UTC


def backoff(failures: int, chance: float) -> float:
    """Seconds to wait after ``failures`` in a row: equal jitter, between the half and the whole of a doubling step.

    Of the schedules measured on 10,000 nodes that lose their coordinator, this one and full jitter bring all of
    them back without a stampede; this one never retries at once.
    """
    step = min(CAP_S, FLOOR_S * 2.0 ** min(failures, 16))
    return step / 2 + chance * step / 2


def retry_after(value: str | None, now: datetime) -> float:
    """Seconds that a ``Retry-After`` header asks for, as a number or a date; 0 if it is missing or malformed."""
    if value is None:
        return 0.0
    try:
        seconds = float(value) if value.strip().isdigit() else (parsedate_to_datetime(value) - now).total_seconds()
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), LONGEST_S)


def until_tomorrow(now: datetime, chance: float) -> float:
    """Seconds until the next day of UTC, and then some, so that not all nodes of metered links return at midnight."""
    midnight = datetime.combine(now.astimezone(UTC).date() + timedelta(days=1), datetime.min.time(), UTC)
    return (midnight - now).total_seconds() + chance * DAWN_S


@dataclass(frozen=True, slots=True)
class Pace:
    """How eagerly a node polls: in seconds while a round waits for it, as the coordinator suggests otherwise.

    Attributes:
        failures: Exchanges that failed since the last one that worked.
        retry_after_s: What the coordinator asked for with the last failure, in seconds.
        round: The open round, as far as the node was told.
        served: The last round that got this node's update.
        owed_until: While an ask was answered with "nothing yet": until when, in seconds of the loop's clock.
        sent: Whether an update went up since the coordinator last said which round is open.
        poll_s: Longest time between two polls when nothing is awaited, in seconds.
    """

    failures: int = 0
    retry_after_s: float = 0.0
    round: int | None = None
    served: int | None = None
    owed_until: float = 0.0
    sent: bool = False
    poll_s: float = IDLE_S

    def failed(self, retry_after_s: float = 0.0) -> "Pace":
        """An exchange failed."""
        return replace(self, failures=self.failures + 1, retry_after_s=min(max(retry_after_s, 0.0), LONGEST_S))

    def reached(self) -> "Pace":
        """An exchange worked."""
        return replace(self, failures=0, retry_after_s=0.0)

    def answered(self, now: float, *, update: bool) -> "Pace":
        """An ask was answered, with an update or with "nothing yet"."""
        if update:
            return replace(self, owed_until=0.0, served=self.round, sent=True)
        return replace(self, owed_until=now + OWED_S)

    def told(self, round_: int | None, poll_s: float) -> "Pace":
        """The coordinator said which round is open, and how often to ask."""
        served = round_ if self.sent and round_ is not None else self.served
        owed_until = self.owed_until if round_ is not None else 0.0
        poll_s = min(max(poll_s, FLOOR_S), LONGEST_S)
        return replace(self, round=round_, served=served, owed_until=owed_until, poll_s=poll_s, sent=False)

    def awaited(self, now: float) -> bool:
        """Whether a round waits for this node."""
        return now < self.owed_until or (self.round is not None and self.round != self.served)

    def wait(self, now: float, chance: float) -> float:
        """Seconds until the next poll. After a failure, never less than the coordinator asked for."""
        if self.failures:
            return max(backoff(self.failures, chance), self.retry_after_s * (1 + chance / 2), FLOOR_S)
        longest = min(ASKED_S, self.poll_s) if self.awaited(now) else self.poll_s
        return longest / 2 + chance * longest / 2
