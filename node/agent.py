"""The node agent: answers, keeps what it saw, learns a private update when a round asks, and minds its releases."""

import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from fleet.errors import (
    BudgetError,
    DowngradeError,
    FleetError,
    MissingExtraError,
    StoreError,
    TaskError,
    TrustError,
)
from fleet.events import Record, ignore
from fleet.messages import ReportInstruction, UpdateInstruction
from fleet.release import Rollout
from fleet.signing import Sealed
from fleet.task import Task
from node.admission import Admit, admit
from node.floors import CLOCK
from node.learning import Learning
from node.outbox import Parcel
from node.predictor import Answer
from node.promotion import StageLog
from node.reporter import Reporter
from node.serving import Serving
from node.shadow import Shadow
from node.slots import Slots

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

POLL_INTERVAL = timedelta(hours=1)
RETRY_INTERVAL = timedelta(minutes=1)
ROUND = "round"
CANNOT_LEARN = "cannot-learn"


class Workshop(Protocol):
    """Does a node's heavy work, in its process or in a child of it."""

    def pull(self, agent: "Agent") -> Rollout | None:
        """Verify the newest metadata and stage the release it offers; who may serve what now."""

    def learn(self, node: Learning, wish: UpdateInstruction) -> None:
        """One session from the base that the instruction names, durably into the outbox."""


class Agent(Learning):
    """A whole node over one folder. It answers in every state of the network; change needs fresh signatures."""

    def __init__(
        self,
        folder: Path,
        task: Task,
        *,
        workshop: Workshop,
        clock: Callable[[], datetime],
        admit: Admit = admit,
        record: Record = ignore,
    ) -> None:
        """Open a provisioned node's folder, as it was left, however it was left.

        Raises:
            TamperedError: Its store or its ledger was altered.
            TrustError: It was never provisioned.
        """
        super().__init__(folder, task, clock=clock)
        self._workshop = workshop
        self._record = record
        self._store_lock = threading.RLock()  # the link, and learning, come from threads of their own
        self._wish: UpdateInstruction | None = None
        self._noted = "", ""
        self._open_serving(admit)

    def _open_serving(self, admit: Admit) -> None:
        identity = self.identity
        self._rollout: Rollout | None = None
        self._dice = random.Random(identity.name)  # noqa: S311 - spreads a fleet in time, hides nothing
        self._failures = 0
        self._soon = False  # something new is said to lie on the shelf
        self._next_poll = self._next_settling = datetime.min.replace(tzinfo=UTC)
        self.shadow = Shadow(self._store, self.task.signature)
        self.stages = StageLog(self._store)
        self.serving = Serving(
            identity.name,
            self.task.signature,
            stages=self.stages,
            slots=Slots(self.folder / "slots"),
            shadow=self.shadow,
            admit=admit,
            record=self._record,
        )

    @cached_property
    def _reporter(self) -> Reporter:
        """Made when the coordinator first asks: a node that only answers holds no key and draws no noise."""
        from fleet.privacy.noise import LatticeGaussian

        noise = LatticeGaussian()
        return Reporter(self._store, self.ledger, self.shadow, noise, node=self.name, key=self.identity.key)

    @property
    def public_key(self) -> "Ed25519PublicKey":
        """The key that the node's updates and reports verify with."""
        return self.identity.key.public_key()

    def answer(self, x: npt.NDArray[np.float32]) -> tuple[int | None, Answer]:
        """Classify a reading with the active release; the request's number, for the label that comes later.

        The answer is given even if it cannot be recorded, on a full disk for example: then it has no number.

        Raises:
            InputError: The reading is not what the task declares; nothing is kept.
            TrustError: The node was never provisioned.
        """
        if self.serving.active is None:
            raise TrustError(f"{self.name} has no release to answer with")
        answer = self.serving.active.answer(x)
        try:
            return self.shadow.record(x, answer), answer
        except sqlite3.Error as error:
            self._record("unrecorded", reason=str(error))
            return None, answer

    def label(self, seq: int, label: int) -> None:
        """The truth about an earlier answer, from whoever knows it; the first one counts.

        Raises:
            InputError: There was no such request, or there is no such class.
        """
        self.shadow.label(seq, label)

    def step(self) -> None:
        """What the node does between readings: it minds its releases, then it learns if a round asked.

        What fails is recorded and tried again at the next step; it keeps nothing else from happening.
        """
        self.mind()
        self.learn()

    def mind(self) -> None:
        """Look at the coordinator's shelf when it is time; promote, or go back."""
        self.pull()
        self.settle()

    def pull(self) -> None:
        """Look at the coordinator's shelf when it is time. A bad network holds it up: a real node gives it a thread."""
        self._try(self._pull)

    def settle(self) -> None:
        """Promote, or go back, as evidence and the last look have it."""
        self._try(self._settle)

    def learn(self) -> None:
        """Give a round that asked its session. It may take long: a real node calls it from a thread of its own."""
        self._try(self._learn)

    def _try(self, part: Callable[[], None]) -> None:
        try:
            part()
        except BudgetError as error:
            self._note("spent", str(error))
        except (TaskError, MissingExtraError) as error:
            self._note(CANNOT_LEARN, str(error))
        except (FleetError, OSError, sqlite3.Error) as error:
            self._record("kept", part=part.__name__.strip("_"), reason=str(error))

    def update(self, sealed: Sealed) -> Parcel | None:
        """The update for the instruction's round: the same bytes however often it asks, None while there is none.

        Raises:
            TrustError: The coordinator did not sign this, or it expired; nothing happens.
        """
        with self._asked():
            wish = UpdateInstruction.verified(sealed, self.identity.coordinator, now=self._now())
            self._check_task(wish.task)
            self._check_round(wish.round)
            parcel = self.outbox.answer(wish, max_staleness=self.identity.settings.round.max_staleness)
            self._wish = None if parcel else wish
            return parcel

    def report(self, sealed: Sealed) -> Sealed | None:
        """What live windows say of the release asked about; None while there are too few.

        Raises:
            TrustError: The coordinator did not sign this, or it expired; nothing happens.
        """
        with self._asked():
            wish = ReportInstruction.verified(sealed, self.identity.coordinator, now=self._now())
            self._check_task(wish.task)
            try:
                return self._reporter.answer(wish)
            except BudgetError as error:
                self._record("report-refused", release=wish.release, reason=str(error))
                return None

    @property
    def wished(self) -> bool:
        """Whether a round waits for a session."""
        return self._wish is not None

    @property
    def on_trial(self) -> bool:
        """Whether a release is in play."""
        with self._store_lock:
            return self.stages.candidate() is not None

    def pull_soon(self) -> None:
        """Look at the coordinator's shelf at the next step: something new is said to lie there."""
        self._soon = True

    def sent_bytes(self) -> list[int]:
        """Size of each update that was bound to a round, in bytes."""
        return self.outbox.sizes()

    def unsent_bases(self) -> list[int]:
        """The base of each session that no round has taken: still waiting, or too old by now."""
        return self.outbox.unsent()

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """One ask at a time; what must not be obeyed is recorded."""
        with self._store_lock:
            try:
                yield
            except TrustError as error:
                self._record("instruction-refused", reason=str(error))
                raise

    def _now(self) -> datetime:
        """Never before what was seen signed: a clock that went back would make old instructions fresh."""
        return max(self.clock(), datetime.fromtimestamp(self.floors.read().get(CLOCK, 0), UTC))

    def _check_round(self, round_: int) -> None:
        """A replayed instruction must not take the session that was learned for a later round."""
        seen = self.floors.read().get(ROUND, 0)
        if round_ < seen and not self.outbox.answered(round_):
            raise DowngradeError(f"have seen round {seen}, got an instruction for round {round_}")
        self.floors.raise_to({ROUND: round_})

    def _check_task(self, task: str) -> None:
        if task != self.task.name:
            raise TrustError(f"{self.name} works on {self.task.name}, the instruction is for {task}")

    def _pull(self) -> None:
        waits = timedelta(0) < self._next_poll - self.clock() <= POLL_INTERVAL  # later than that: the clock went back
        if waits and not self._soon:
            return
        self._soon = False  # what is said from now on may be newer than what is about to be read
        self._next_poll = self.clock() + self._spread(min(RETRY_INTERVAL * 2 ** min(self._failures, 16), POLL_INTERVAL))
        self._failures += 1
        self._rollout = self._workshop.pull(self)
        if self.serving.is_whole():  # what is damaged is asked for again like what failed
            self._failures = 0
            self._next_poll = self.clock() + self._spread(POLL_INTERVAL)

    def _spread(self, longest: timedelta) -> timedelta:
        """Between the half and the whole of it: nodes that were offline together do not return in one minute."""
        return longest * (1 + self._dice.random()) / 2

    def _settle(self) -> None:
        if timedelta(0) < self._next_settling - self.clock() <= RETRY_INTERVAL:
            return
        with self._store_lock:
            try:
                self.serving.settle(self._rollout)
            except StoreError:  # a release that this device could not load now
                self._next_settling = self.clock() + RETRY_INTERVAL
                raise

    def _learn(self) -> None:
        """One session for the round that asked. Only a timer and an instruction decide when, never the data."""
        with self._store_lock:
            wish, self._wish = self._wish, None  # whatever comes of it: the next ask is the next wish
            if wish is None or self.outbox.waiting(wish.base):
                return
        self._workshop.learn(self, wish)

    def _note(self, event: str, reason: str) -> None:
        """Once, and not at every round that is still to come."""
        if self._noted != (event, reason):
            self._noted = event, reason
            self._record(event, reason=reason)
