"""The node agent: answers, keeps what it saw, learns a private update when a round asks, and minds its releases."""

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fleet.errors import BudgetError, DowngradeError, FleetError, TrustError
from fleet.events import Record, ignore
from fleet.messages import ReportInstruction, UpdateInstruction
from fleet.privacy.gaussian import Budget
from fleet.privacy.noise import LatticeGaussian
from fleet.release import Rollout
from fleet.signing import Sealed
from fleet.task import Task
from node.admission import Admit, admit
from node.buffer import Buffer
from node.catalog import Catalog
from node.floors import CLOCK, SqliteFloors
from node.identity import Identity
from node.installer import FolderFetcher, Installer
from node.learner import Learner
from node.ledger import Ledger
from node.outbox import Outbox, Parcel
from node.predictor import Answer
from node.promotion import StageLog
from node.reporter import Reporter
from node.serving import Serving
from node.shadow import Shadow
from node.slots import Slots
from node.store import open_store

POLL_INTERVAL = timedelta(hours=1)
ROUND = "round"


class Agent:
    """A whole node over one folder. It answers in every state of the network; change needs fresh signatures."""

    def __init__(
        self,
        folder: Path,
        task: Task,
        *,
        fetcher: FolderFetcher,
        clock: Callable[[], datetime],
        admit: Admit = admit,
        record: Record = ignore,
    ) -> None:
        """Open a provisioned node's folder, as it was left, however it was left.

        Raises:
            TamperedError: Its store or its ledger was altered.
            TrustError: It was never provisioned.
        """
        self._store = open_store(folder / "node.db")
        identity = Identity.load(self._store)
        if identity is None:
            raise TrustError(f"{folder} was never provisioned")
        self._identity = identity
        self._task = task
        self._clock = clock
        self._record = record
        self._open_learning()
        self._open_serving(folder, fetcher, admit)

    def _open_learning(self) -> None:
        identity, privacy = self._identity, self._identity.settings.privacy
        budget = Budget(privacy.epsilon, privacy.delta, self._task.unit.group)
        self.ledger = Ledger(self._store, budget)
        self.buffer = Buffer(self._store, self._task.signature, partition_size=privacy.partition_examples)
        self._noise = LatticeGaussian()
        self._noise_multiplier = budget.noise_multiplier(privacy.planned_releases)
        self._learner: Learner | None = None
        self._outbox = Outbox(self._store, self.ledger, node=identity.name, key=identity.key)
        self._wish: UpdateInstruction | None = None

    def _open_serving(self, folder: Path, fetcher: FolderFetcher, admit: Admit) -> None:
        identity = self._identity
        self._floors = SqliteFloors(self._store)
        installer = Installer(folder / "trust", identity.root, fetcher, self._floors, clock=self._clock)
        self._catalog = Catalog(installer)
        self._rollout: Rollout | None = None
        self._next_poll = datetime.min.replace(tzinfo=self._clock().tzinfo)
        self.shadow = Shadow(self._store, self._task.signature)
        self._reporter = Reporter(
            self._store, self.ledger, self.shadow, self._noise, node=identity.name, key=identity.key
        )
        self.stages = StageLog(self._store)
        self.serving = Serving(
            identity.name,
            self._task.signature,
            stages=self.stages,
            slots=Slots(folder / "slots"),
            shadow=self.shadow,
            admit=admit,
            record=self._record,
        )

    @property
    def name(self) -> str:
        """The node's name in the fleet."""
        return self._identity.name

    @property
    def public_key(self) -> Ed25519PublicKey:
        """The key that the node's updates and reports verify with."""
        return self._identity.key.public_key()

    def install(self) -> None:
        """Install the first release of a new node: the newest that everybody may serve.

        Raises:
            LinkError: The coordinator's shelf cannot be reached.
            TrustError: Nothing on it may be served.
        """
        self._catalog.refresh()
        rollout = self._catalog.rollout()
        if rollout is None:
            raise TrustError(f"{self.name}: the coordinator offers no release to begin with")
        self.serving.provision(self._catalog, rollout.serving)

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
        except sqlite3.OperationalError as error:
            self._record("unrecorded", reason=str(error))
            return None, answer

    def label(self, seq: int, label: int) -> None:
        """The truth about an earlier answer, from whoever knows it; the first one counts.

        Raises:
            InputError: There was no such request, or there is no such class.
        """
        self.shadow.label(seq, label)

    def step(self) -> None:
        """What the node does between readings: pull, promote or go back, learn if a round asked.

        What fails is recorded and tried again at the next step; it keeps nothing else from happening.
        """
        for part in (self._pull, self._settle, self._learn):
            try:
                part()
            except (FleetError, OSError, sqlite3.OperationalError) as error:
                self._record("kept", part=part.__name__.strip("_"), reason=str(error))

    def update(self, sealed: Sealed) -> Parcel | None:
        """The update for the instruction's round: the same bytes however often it asks, None while there is none.

        Raises:
            TrustError: The coordinator did not sign this, or it expired; nothing happens.
        """
        wish = UpdateInstruction.verified(sealed, self._identity.coordinator, now=self._now())
        self._check_task(wish.task)
        self._check_round(wish.round)
        parcel = self._outbox.answer(wish, max_staleness=self._identity.settings.round.max_staleness)
        self._wish = None if parcel else wish
        return parcel

    def report(self, sealed: Sealed) -> Sealed | None:
        """What live windows say of the release asked about; None while there are too few.

        Raises:
            TrustError: The coordinator did not sign this, or it expired; nothing happens.
        """
        wish = ReportInstruction.verified(sealed, self._identity.coordinator, now=self._now())
        self._check_task(wish.task)
        try:
            return self._reporter.answer(wish)
        except BudgetError as error:
            self._record("report-refused", release=wish.release, reason=str(error))
            return None

    def sent_bytes(self) -> list[int]:
        """Size of each update that was bound to a round, in bytes."""
        return self._outbox.sizes()

    def close(self) -> None:
        """Let go of the store."""
        self._store.close()

    def _now(self) -> datetime:
        """Never before what was seen signed: a clock that went back would make old instructions fresh."""
        return max(self._clock(), datetime.fromtimestamp(self._floors.read().get(CLOCK, 0), UTC))

    def _check_round(self, round_: int) -> None:
        """A replayed instruction must not take the session that was learned for a later round."""
        seen = self._floors.read().get(ROUND, 0)
        if round_ < seen and not self._outbox.answered(round_):
            raise DowngradeError(f"have seen round {seen}, got an instruction for round {round_}")
        self._floors.raise_to({ROUND: round_})

    def _check_task(self, task: str) -> None:
        if task != self._task.name:
            raise TrustError(f"{self.name} works on {self._task.name}, the instruction is for {task}")

    def _pull(self) -> None:
        if self._clock() < self._next_poll and not self._lacks_base():
            return
        self._catalog.refresh()
        self._rollout = self._catalog.rollout()
        self._next_poll = self._clock() + POLL_INTERVAL
        if self._rollout:
            self.serving.consider(self._rollout, self._catalog)

    def _settle(self) -> None:
        self.serving.settle(self._rollout)

    def _lacks_base(self) -> bool:
        """Whether a round names a base that is newer than what was last pulled."""
        return self._wish is not None and not self._catalog.has_base(self._wish.base)

    def _learn(self) -> None:
        """One session for the round that asked. Only a timer and an instruction decide when, never the data."""
        wish = self._wish
        if wish is None or self._outbox.waiting(wish.base):
            return
        self._wish = None  # whatever comes of it: the next ask is the next wish
        base, weights = self._catalog.base(wish.base)
        if base.payload != wish.base_digest:
            raise TrustError(f"base {wish.base} is not the one that the instruction names")
        if session := self._session(weights):
            self._outbox.put(*session, base=base.number, base_digest=base.payload)

    def _session(self, weights: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], int] | None:
        settings = self._identity.settings
        if self._learner is None:
            self._learner = Learner(
                self._task, self.ledger, self.buffer, self._noise, clipping_norm=settings.privacy.clipping_norm
            )
        return self._learner.learn(weights, releases=settings.session_releases, noise_multiplier=self._noise_multiplier)


def provision(
    folder: Path,
    identity: Callable[[], Identity],
    task: Task,
    *,
    fetcher: FolderFetcher,
    clock: Callable[[], datetime],
    admit: Admit = admit,
    record: Record = ignore,
) -> Agent:
    """Open a node; if it is new, pin an identity and install the release that everybody may serve.

    Interrupted and called again, it goes on where it was.

    Raises:
        LinkError: The coordinator's shelf cannot be reached.
        TrustError: What it offers must not be used.
    """
    store = open_store(folder / "node.db")
    if Identity.load(store) is None:
        identity().save(store)
    store.close()
    agent = Agent(folder, task, fetcher=fetcher, clock=clock, admit=admit, record=record)
    if agent.serving.active is None:
        agent.install()
    return agent
