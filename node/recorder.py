"""Writes readings and labels to the store in a thread of its own, in the order in which they came."""

import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np

from fleet.errors import FleetError, InputError, StoreError
from fleet.events import Record, ignore
from fleet.task import Signature
from node.buffer import Buffer
from node.metrics import Metrics
from node.shadow import Reading, Shadow
from node.store import open_store, transaction

CAPACITY = 256  # readings that wait for the disk, or one request of any size; further ones are answered and not kept
LINGER_S = 0.02  # how long the first of them waits for company: one flush for all
FORGET_EVERY = 100  # readings
LABEL_TIMEOUT_S = 10.0
_BUSY_MS = 5000
_CACHE_KB = 512


@dataclass(frozen=True, slots=True)
class _Answered:
    request: str
    readings: Sequence[Reading]


@dataclass(frozen=True, slots=True)
class _Labelled:
    request: str
    labels: Sequence[int]
    outcome: "SimpleQueue[int | FleetError]" = field(default_factory=SimpleQueue)


class Recorder:
    """Takes what a desk saw. Whatever becomes of the disk, nobody who wants an answer waits for it."""

    def __init__(
        self, path: Path, signature: Signature, metrics: Metrics, *, partition_size: int, record: Record = ignore
    ) -> None:
        """Open the node's store at ``path`` for itself.

        Raises:
            TamperedError: The file is no database of ours.
        """
        self._store = open_store(path)
        self._store.execute(f"pragma busy_timeout={_BUSY_MS}")
        self._store.execute(f"pragma cache_size=-{_CACHE_KB}")
        self._shadow = Shadow(self._store, signature)
        self._buffer = Buffer(self._store, signature, partition_size=partition_size)
        self._metrics = metrics
        self._record = record
        self._jobs: list[_Answered | _Labelled] = []
        self._waiting = 0
        self._since_forgetting = 0
        self._hurry = False
        self._closed = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def put(self, request: str, readings: Sequence[Reading]) -> bool:
        """Keep them soon; whether there is room to."""
        with self._wake:
            if self._closed or (self._waiting and self._waiting + len(readings) > CAPACITY):
                return False
            self._waiting += len(readings)
            self._jobs.append(_Answered(request, readings))
            if len(self._jobs) == 1:
                self._wake.notify()
        return True

    def teach(self, request: str, labels: Sequence[int]) -> int:
        """Keep the truth about a request and wait until it is on the disk; how many labels were new.

        Raises:
            InputError: As ``Shadow.teach``.
            StoreError: The disk is full, or busy for too long.
        """
        job = _Labelled(request, labels)
        with self._wake:
            if self._closed:
                raise StoreError("the node is stopping: send the label again later")
            self._jobs.append(job)
            self._hurry = True
            self._wake.notify()
        try:
            outcome = job.outcome.get(timeout=LABEL_TIMEOUT_S)
        except Empty:
            outcome = StoreError("the label was not stored in time: send it again later")
        if isinstance(outcome, FleetError):
            raise outcome
        return outcome

    def close(self) -> None:
        """Write what waits, and let go of the store."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()
        self._store.close()

    def _run(self) -> None:
        while jobs := self._next():
            readings = [one for job in jobs if isinstance(job, _Answered) for one in job.readings]
            self._metrics.sure(map(_confidence, readings))
            outcomes: list[tuple[_Labelled, int | FleetError]] = []
            try:
                self._write(jobs, outcomes)
            except sqlite3.Error as error:
                self._metrics.lose(len(readings))
                self._record("unrecorded", readings=len(readings), reason=str(error))
                failure = StoreError(f"the label was not stored ({error}): send it again later")
                outcomes = [(job, failure) for job in jobs if isinstance(job, _Labelled)]
            for job, outcome in outcomes:
                job.outcome.put(outcome)

    def _next(self) -> "list[_Answered | _Labelled]":
        """What came in since, after a short wait for company; nothing at the end."""
        with self._wake:
            self._wake.wait_for(lambda: self._jobs or self._closed)
            self._wake.wait_for(lambda: self._hurry or self._closed, timeout=LINGER_S)
            jobs, self._jobs, self._waiting, self._hurry = self._jobs, [], 0, False
        return jobs

    def _write(self, jobs: "list[_Answered | _Labelled]", outcomes: "list[tuple[_Labelled, int | FleetError]]") -> None:
        """All of it in one transaction: one flush of the disk, however many came."""
        with transaction(self._store):
            for job in jobs:
                if isinstance(job, _Answered):
                    self._shadow.record_request(job.request, job.readings)
                    self._since_forgetting += len(job.readings)
                else:
                    outcomes.append((job, self._taught(job)))
            if self._since_forgetting >= FORGET_EVERY:
                self._shadow.forget()
                self._since_forgetting = 0

    def _taught(self, job: _Labelled) -> int | FleetError:
        try:
            return self._shadow.teach(job.request, job.labels, self._buffer)
        except InputError as error:  # before it changed anything: the others in the transaction stand
            return error


def _confidence(reading: Reading) -> float:
    scores = reading.answer.logits.astype(np.float64)
    return float(1 / np.exp(scores - scores.max()).sum())
