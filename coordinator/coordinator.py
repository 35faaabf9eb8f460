"""The coordinator: opens rounds, admits updates, and closes rounds into bases; its releases are in the delivery."""

import math
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from coordinator.admission import Rules, admit
from coordinator.aggregation import RULES, Entry
from coordinator.asks import INSTRUCTION_LIFE
from coordinator.bases import Bases
from coordinator.delivery import Delivery
from coordinator.publisher import Publisher
from coordinator.registry import Registry
from coordinator.round import Round, RoundState, is_due, verdict
from coordinator.rounds import BaseRow, Refusal
from coordinator.strategy import ServerStep
from coordinator.vault import Vault
from fleet.enrolment import Welcome
from fleet.errors import RefusedError, TamperedError
from fleet.events import LONGEST_TEXT, Record, ignore
from fleet.messages import UpdateInstruction
from fleet.settings import Settings
from fleet.signing import Sealed
from fleet.task import Task
from fleet.weights import Flat


class Coordinator:
    """One task's fleet, over one folder. Every step is durable before the next: killed anywhere, it goes on."""

    def __init__(
        self,
        folder: Path,
        task: Task,
        settings: Settings,
        *,
        publisher: Publisher,
        size: int,
        key: Ed25519PrivateKey,
        clock: Callable[[], datetime],
        record: Record = ignore,
    ) -> None:
        """``size`` is the length of the weights; ``key`` signs instructions and is no key of TUF's."""
        self.registry = Registry(f"sqlite:///{folder / 'registry.db'}")
        self.bases = Bases(self.registry, Vault(folder / "vault"), publisher)
        self.delivery = Delivery(
            task,
            settings,
            registry=self.registry,
            bases=self.bases,
            publisher=publisher,
            key=key,
            clock=clock,
            record=record,
        )
        self._spool = Vault(folder / "spool")
        self._task = task
        self._settings = settings
        self._size = size
        self._key = key
        self._clock = clock
        self._record = record
        self._server_step = ServerStep(settings.round)
        self._budget = settings.privacy.budget(task.unit.group)

    @property
    def instruction_key(self) -> Ed25519PublicKey:
        """The key that nodes pin."""
        return self._key.public_key()

    def sealed(self, welcome: Welcome) -> dict[str, Any]:
        """The welcome of a new node, so that it knows whose it is."""
        return welcome.to_json(self._key)

    @property
    def size(self) -> int:
        """The length of the weights."""
        return self._size

    # the beginning, and every beginning after a crash

    def begin(self, warm_start: Callable[[], Flat]) -> None:
        """Make base 0 and release 0 of a warm start, unless they are there; finish what was interrupted."""
        self.bases.begin(warm_start)
        self.delivery.finish()
        if self.registry.rounds.current() is None:
            self._spool.clear()

    def finish(self) -> None:
        """Do what a crash or an error cut short: what is on record is on the shelf, a halted release is withdrawn."""
        self.bases.finish()
        self.delivery.finish()

    def enrol(self, name: str, key: Ed25519PublicKey, flower_id: int) -> None:
        """Add a node to the fleet."""
        self.registry.roster.enrol(name, key, flower_id)

    def revoke(self, name: str) -> None:
        """Take a node out: of the open round, of every later aggregate, of rollouts.

        Raises:
            RefusedError: ``unknown-node``.
        """
        if self.registry.roster.member(name) is None:
            raise RefusedError("unknown-node", f"no node {name!r} is enrolled")
        self.registry.roster.revoke(name)
        self._record("revoked", node=name)

    # up: a round

    def open_round(self, *, asked: bool = False) -> Round | None:
        """The open round; a new one if none is open, one is left in the plan, and it is due or was asked for."""
        if current := self.registry.rounds.current():
            return current
        now = self._clock()
        if not self._is_due(timedelta.min if asked else self._settings.round.every, now):
            return None
        deadline = now + self._settings.round.deadline
        opened = self.registry.rounds.open(self.bases.newest().number, now, deadline)
        self._record("round-opened", round=opened.number, base=opened.base)
        return opened

    def round_is_due(self) -> bool:
        """Whether ``open_round`` has one."""
        return self.registry.rounds.current() is not None or self._is_due(self._settings.round.every, self._clock())

    def _is_due(self, every: timedelta, now: datetime) -> bool:
        """A fleet too small for the quorum waits: a round that must fail would only use up the plan."""
        settings, enough = self._settings.round, len(self.registry.roster.active()) >= self._settings.round.min_updates
        return enough and is_due(self.registry.rounds.all(), plan=settings.rounds, every=every, now=now)

    def update_instruction(self, round_: Round) -> Sealed:
        """What nodes are asked in a round, signed."""
        payload = self.bases[round_.base].payload
        expires = self._clock() + INSTRUCTION_LIFE
        return UpdateInstruction(self._task.name, expires, round_.number, round_.base, payload).sealed(self._key)

    def waiting_for(self, round_: Round) -> dict[str, int]:
        """Flower's ids of the nodes that have not answered the round."""
        answered = self.registry.rounds.answered(round_.number)
        return {name: id_ for name, id_ in self.registry.roster.active().items() if name not in answered}

    def receive_update(self, round_: Round, node: str, sealed: Sealed, codec: str, payload: bytes) -> None:
        """Admit a reply and make it durable, or record why not. ``node`` is who was asked, for the record only."""
        try:
            admitted = admit(
                sealed,
                payload,
                codec=codec,
                member=self.registry.roster.member,
                round_=round_,
                rules=self._rules(),
            )
            spooled = self._spool.put(admitted.delta)
            self.registry.rounds.accept(admitted, spooled)
        except RefusedError as error:
            reason = str(error)[:LONGEST_TEXT]
            self.registry.rounds.refuse(Refusal(round_.number, node, error.code, reason))
            self._record("refused", round=round_.number, node=node, code=error.code, reason=reason)

    def note_failure(self, round_: Round, node: str, reason: str) -> None:
        """Record that a node answered with an error, or with what could not be read."""
        self._record("no-update", round=round_.number, node=node, code="failed", reason=reason)

    def settle_round(self, round_: Round) -> RoundState:
        """Close or fail the round if it is time; what became of it."""
        entries = self.registry.rounds.entries(round_)
        asked, enough = len(self.registry.roster.active()), self._settings.round.min_updates
        state = verdict(round_, admitted=len(entries), asked=asked, min_updates=enough, now=self._clock())
        if state is RoundState.CLOSED:
            try:
                base = self._next_base(round_, entries)
                if not self.registry.rounds.close(round_, base, entries):  # a node was revoked meanwhile
                    return RoundState.OPEN
            except (ValueError, TamperedError) as error:  # cannot be quantized, or read: the next round's may be
                state = RoundState.FAILED
                self._record("unusable", round=round_.number, reason=str(error))
            else:
                self.bases.publish(base)
                self._record("round-closed", round=round_.number, updates=len(entries), base=base.number)
        if state is RoundState.FAILED:
            self.registry.rounds.fail(round_.number)
            self._record("round-failed", round=round_.number, updates=len(entries), asked=asked)
        if state is not RoundState.OPEN:
            self._spool.clear()
        return state

    def _next_base(self, round_: Round, entries: list[Entry]) -> BaseRow:
        mean = RULES[self._settings.round.aggregation](entries, self._spool.get)
        last = self.bases.newest()
        master, memory = self._server_step(last.number + 1, self.bases.master(last), mean, self.bases.memory(last))
        return self.bases.next(round_.number, master, memory)

    def _rules(self) -> Rules:
        settings = self._settings
        noise = self._budget.noise_multiplier(settings.privacy.planned_releases)
        return Rules(
            task=self._task.name,
            size=self._size,
            max_norm=_longest_honest(self._task, settings, self._size, noise),
            max_staleness=settings.round.max_staleness,
            bases={base.number: base.payload for base in self.registry.rounds.bases()},
        )


def _longest_honest(task: Task, settings: Settings, size: int, noise_multiplier: float) -> float:
    """A norm that no honest session passes: all clipped gradients in line, and noise of twice its usual length."""
    signal = settings.privacy.partition_examples
    noise = 2 * noise_multiplier * math.sqrt(size)
    step = task.training.step_length(noise_multiplier) * settings.privacy.clipping_norm
    return settings.session_releases * step * (signal + noise)
