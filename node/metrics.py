"""What a node counts while it answers, in the text format of Prometheus.

These figures follow from private readings and are in no ledger: they are for this device. Whoever collects them
elsewhere takes them out from under the privacy budget.
"""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

KIND = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class Gauge:
    """A figure of this moment."""

    name: str
    help: str
    value: float


class Histogram:
    """How often values fell at or below each of some bounds."""

    def __init__(self, name: str, help_: str, bounds: Sequence[float]) -> None:
        self._name, self._help, self._bounds = name, help_, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value. For one thread at a time."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self) -> Iterator[str]:
        """The exposition, cumulative as Prometheus wants it."""
        yield from _titled(self._name, self._help, "histogram")
        for bound, count in zip((*map(repr, self._bounds), "+Inf"), accumulate(self._counts), strict=True):
            yield f'{self._name}_bucket{{le="{bound}"}} {count}'
        yield f"{self._name}_sum {self._sum!r}"
        yield f"{self._name}_count {sum(self._counts)}"


@dataclass(slots=True)
class Metrics:
    """Counted since the process began, from many threads."""

    answers: int = 0
    labels: int = 0
    unrecorded: int = 0
    refused: Counter[int] = field(default_factory=Counter)
    seconds: Histogram = field(
        default_factory=lambda: Histogram("edgefleet_answer_seconds", "Time the model took for a request.", _SECONDS)
    )
    confidence: Histogram = field(
        default_factory=lambda: Histogram("edgefleet_confidence", "Largest softmax of each answer.", _SHARES)
    )
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answered(self, readings: int, seconds: float) -> None:
        """Count a request that was answered."""
        with self._lock:
            self.answers += readings
            self.seconds.observe(seconds)

    def sure(self, shares: Iterable[float]) -> None:
        """Count how sure answers were, between 0 and 1."""
        with self._lock:
            for share in shares:
                self.confidence.observe(share)

    def refuse(self, status: int) -> None:
        """Count a request that was refused."""
        with self._lock:
            self.refused[status] += 1

    def lose(self, readings: int) -> None:
        """Count readings that were answered and could not be kept."""
        with self._lock:
            self.unrecorded += readings

    def learn(self, labels: int) -> None:
        """Count labels that were taken."""
        with self._lock:
            self.labels += labels

    def text(self, gauges: Iterable[Gauge] = ()) -> str:
        """Everything, with the gauges of this moment."""
        with self._lock:
            lines = [*self._counters(), *self.seconds.lines(), *self.confidence.lines()]
        for gauge in gauges:
            lines += [*_titled(gauge.name, gauge.help, "gauge"), f"{gauge.name} {gauge.value!r}"]
        return "\n".join([*lines, ""])

    def _counters(self) -> Iterator[str]:
        totals = [
            ("edgefleet_answers_total", "Readings answered.", self.answers),
            ("edgefleet_labels_total", "Labels taken.", self.labels),
            (
                "edgefleet_unrecorded_total",
                "Readings answered and not kept: disk full, locked or too slow.",
                self.unrecorded,
            ),
        ]
        for name, help_, value in totals:
            yield from (*_titled(name, help_, "counter"), f"{name} {value}")
        yield from _titled("edgefleet_refused_total", "Requests refused, by status.", "counter")
        for status, count in sorted(self.refused.items()):
            yield f'edgefleet_refused_total{{status="{status}"}} {count}'


def _titled(name: str, help_: str, kind: str) -> tuple[str, str]:
    return f"# HELP {name} {help_}", f"# TYPE {name} {kind}"
