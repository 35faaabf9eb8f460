"""Simulated time: it moves when the world says so."""

from datetime import UTC, datetime, timedelta

START = datetime(2026, 1, 1, tzinfo=UTC)


class SimulatedClock:
    """Called, it tells the time; the world sets it to the beginning of an hour and lets minutes pass within one."""

    def __init__(self) -> None:
        self._now = START

    def __call__(self) -> datetime:
        return self._now

    def set_hour(self, hour: int) -> None:
        """It is now ``hour`` hours after the start."""
        self.set_to(timedelta(hours=hour))

    def set_to(self, elapsed: timedelta) -> None:
        """It is now this long after the start."""
        self._now = START + elapsed

    def pass_time(self, span: timedelta) -> None:
        """Let time pass."""
        self._now += span
