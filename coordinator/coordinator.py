"""The coordinator: opens rounds, admits updates, closes rounds into bases, offers releases and judges rollouts."""

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from coordinator.admission import Rules, admit, admit_report
from coordinator.aggregation import RULES
from coordinator.publisher import Publisher, rollout_of
from coordinator.registry import Registry
from coordinator.rollout import Phase, RolloutState, judge
from coordinator.round import Round, RoundState, is_due, verdict
from coordinator.rounds import BaseRow, Refusal
from coordinator.strategy import ServerStep
from coordinator.vault import Vault
from fleet.errors import RefusedError, TaskError, UsageError
from fleet.events import Record, ignore
from fleet.evidence import Pooled
from fleet.messages import ReportInstruction, UpdateInstruction
from fleet.privacy.gaussian import Budget
from fleet.release import Release, Rollout
from fleet.settings import Settings
from fleet.signing import Sealed
from fleet.task import Task
from fleet.weights import Flat

INSTRUCTION_LIFE = timedelta(hours=1)


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
        self._vault = Vault(folder / "vault")
        self._spool = Vault(folder / "spool")
        self._task = task
        self._settings = settings
        self._publisher = publisher
        self._size = size
        self._key = key
        self._clock = clock
        self._record = record
        self._server_step = ServerStep(settings.round)
        self._budget = Budget(settings.privacy.epsilon, settings.privacy.delta, task.unit.group)
        self._noise_std = self._budget.noise_multiplier(1)

    @property
    def instruction_key(self) -> Ed25519PublicKey:
        """The key that nodes pin."""
        return self._key.public_key()

    @property
    def size(self) -> int:
        """The length of the weights."""
        return self._size

    # the beginning, and every beginning after a crash

    def begin(self, warm_start: Callable[[], Flat]) -> None:
        """Make base 0 and release 0 of a warm start, unless they are there; finish what was interrupted."""
        if not self.registry.rounds.bases():
            self._found(warm_start())
        for base in self.registry.rounds.bases():
            if not base.published:
                self._publish_base(base)
        newest = self.registry.releases.newest()
        if newest is None:
            self._announce(self.registry.rounds.bases()[0], Phase.DONE)
        else:
            self._publish_release(*newest)
            if newest[1].phase is Phase.HALTED:  # killed between the halt and its withdrawal
                self._withdraw(newest[0].number)

    def _found(self, weights: Flat) -> None:
        memory = self._vault.put(np.zeros((0, self._size), np.float32))
        row = BaseRow(0, 0, self._publisher.payload_digest(weights), self._vault.put(weights), memory, published=False)
        self.registry.rounds.add_bases(row)

    def enrol(self, name: str, key: Ed25519PublicKey, flower_id: int) -> None:
        """Add a node to the fleet."""
        self.registry.roster.enrol(name, key, flower_id)

    def revoke(self, name: str) -> None:
        """Take a node out: of the open round, of every later aggregate, of rollouts.

        Raises:
            RefusedError: ``unknown-node``.
        """
        if name not in self.registry.roster.members():
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
        opened = self.registry.rounds.open(self.registry.rounds.bases()[-1].number, now, deadline)
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
        payload = self.registry.rounds.bases()[round_.base].payload
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
                members=self.registry.roster.members(),
                round_=round_,
                rules=self._rules(),
            )
            spooled = self._spool.put(admitted.delta)
            self.registry.rounds.accept(admitted, spooled)
        except RefusedError as error:
            self.registry.rounds.refuse(Refusal(round_.number, node, error.code, str(error)))
            self._record("refused", round=round_.number, node=node, code=error.code, reason=str(error))

    def note_failure(self, round_: Round, node: str, reason: str) -> None:
        """Record that a node answered with an error, or with what could not be read."""
        self._record("no-update", round=round_.number, node=node, code="failed", reason=reason[:200])

    def settle_round(self, round_: Round) -> RoundState:
        """Close or fail the round if it is time; what became of it."""
        admitted = len(self.registry.rounds.entries(round_))
        asked = len(self.registry.roster.active())
        state = verdict(
            round_, admitted=admitted, asked=asked, min_updates=self._settings.round.min_updates, now=self._clock()
        )
        if state is RoundState.CLOSED:
            try:
                self._close(round_)
            except ValueError as error:  # a master that cannot be quantized: the round fails, and the next may not
                state = RoundState.FAILED
                self._record("unusable", round=round_.number, reason=str(error))
        if state is RoundState.FAILED:
            self.registry.rounds.fail(round_.number)
            self._record("round-failed", round=round_.number, updates=admitted, asked=asked)
        return state

    def _close(self, round_: Round) -> None:
        rounds = self.registry.rounds
        entries = rounds.entries(round_)
        mean = RULES[self._settings.round.aggregation](entries, self._spool.get)
        last = rounds.bases()[-1]
        master, memory = self._server_step(last.number + 1, self.master(last), mean, self._vault.get(last.memory))
        base = BaseRow(
            number=last.number + 1,
            round=round_.number,
            payload=self._publisher.payload_digest(master),
            master=self._vault.put(master),
            memory=self._vault.put(memory),
            published=False,
        )
        rounds.close(round_, base, [entry.key for entry in entries])
        self._publish_base(base)
        self._spool.clear()
        self._record("round-closed", round=round_.number, updates=len(entries), base=base.number)

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

    # down: releases and rollouts

    def master(self, base: BaseRow) -> Flat:
        """The float32 weights that a base was quantized from."""
        return self._vault.get(base.master)

    def release_is_due(self) -> bool:
        """Whether enough rounds have passed since the last release, and no rollout is running."""
        if self.registry.releases.running():
            return False
        offered = max(release.base for release, _ in self.registry.releases.all())
        return self.registry.rounds.bases()[-1].number - offered >= self._settings.release.every_rounds

    def offer_release(self) -> None:
        """Make the newest base a release, if one is due."""
        if not self.release_is_due():
            return
        try:
            self._announce(self.registry.rounds.bases()[-1], Phase.SHADOW)
        except TaskError as error:  # the gate: this base stays a base
            self._record("not-offered", base=self.registry.rounds.bases()[-1].number, reason=str(error))

    def offer(self, weights: Flat) -> None:
        """Offer weights ``(size,)`` that no round made, such as an operator's own: signed and rolled out like any.

        They take a base number, and training goes on from the base before them, under the number after theirs.

        Raises:
            UsageError: Another release is being rolled out.
            TaskError: The gate: they cannot be released.
            ValueError: They are not finite.
        """
        if running := self.registry.releases.running():
            raise UsageError(f"release {running[0].number} is being rolled out: one at a time")
        last = self.registry.rounds.bases()[-1]
        payload, master = self._publisher.payload_digest(weights), self._vault.put(weights)
        brought = replace(last, number=last.number + 1, round=0, payload=payload, master=master, published=False)
        on = replace(last, number=last.number + 2, round=0, published=False)
        self.registry.rounds.add_bases(brought, on)
        for base in (brought, on):
            self._publish_base(base)
        self._announce(brought, Phase.SHADOW)

    def report_instruction(self) -> ReportInstruction | None:
        """What nodes should be asked about the running rollout; None if there is none."""
        running = self.registry.releases.running()
        if running is None:
            return None
        release, state = running
        quota = release.shadow_windows if state.phase is Phase.SHADOW else release.probation_windows
        expires = self._clock() + INSTRUCTION_LIFE
        return ReportInstruction(self._task.name, expires, release.number, state.watch, quota)

    def sealed(self, instruction: ReportInstruction) -> Sealed:
        """The instruction, signed."""
        return instruction.sealed(self._key)

    def reporters(self) -> dict[str, int]:
        """Flower's ids of the nodes that the running rollout waits for."""
        running = self.registry.releases.running()
        if running is None:
            return {}
        state = running[1]
        counts = self.registry.releases.counts(state.release, state.watch)
        return {name: id_ for name, id_ in self._asked(state).items() if name not in counts}

    def receive_report(self, instruction: ReportInstruction, node: str, sealed: Sealed) -> None:
        """Admit a report and make it durable, or record why not."""
        try:
            members = self.registry.roster.members()
            report = admit_report(sealed, members=members, instruction=instruction, noise_std=self._noise_std)
            self.registry.releases.accept(report)
        except RefusedError as error:
            self._record("report-refused", release=instruction.release, node=node, code=error.code, reason=str(error))

    def judge_rollout(self) -> None:
        """Let the running rollout take every step that its evidence calls for."""
        while running := self.registry.releases.running():
            release, state = running
            asked = self._asked(state)
            counts = self.registry.releases.counts(state.release, state.watch)
            given = [counts[name] for name in asked if name in counts]
            quota = release.shadow_windows if state.phase is Phase.SHADOW else release.probation_windows
            evidence = Pooled.of(given, quota=quota, noise_std=self._noise_std)
            judged = judge(state, evidence, asked=len(asked), settings=self._settings.release, now=self._clock())
            if judged == state:
                return
            self._move(judged, evidence)

    def _move(self, state: RolloutState, evidence: Pooled) -> None:
        self.registry.releases.move(state)
        self._publish_rollout(state)
        self._record(
            "rollout",
            release=state.release,
            phase=state.phase.value,
            wave=state.wave,
            reports=evidence.reports,
            gain=round(evidence.gain, 4),
            error=round(evidence.error, 4) if math.isfinite(evidence.error) else None,
        )
        if state.phase is Phase.HALTED:
            self._withdraw(state.release)

    def pause_rollout(self, *, paused: bool) -> RolloutState:
        """Let the running rollout stand still, or go on; its patience begins anew.

        Raises:
            RefusedError: ``no-rollout``: none is running.
        """
        running = self.registry.releases.running()
        if running is None:
            raise RefusedError("no-rollout", "no rollout is running")
        state = replace(running[1], paused=paused, since=self._clock())
        self.registry.releases.move(state)
        self._record("rollout-paused" if paused else "rollout-resumed", release=state.release)
        return state

    def withdraw_newest(self) -> Release:
        """Take the newest release back, fleet-wide; the release that points at what was served before.

        Raises:
            RefusedError: ``not-served``: nobody serves it anyway; ``nothing-before``: there is no earlier one.
        """
        release, state = self.registry.releases.all()[-1]
        if state.phase in (Phase.HALTED, Phase.KEPT_OLD):
            raise RefusedError("not-served", f"release {release.number} is served by nobody")
        if not any(s.phase is Phase.DONE for r, s in self.registry.releases.all() if r.number < release.number):
            raise RefusedError(
                "nothing-before", f"release {release.number} is the first: there is nothing to go back to"
            )
        self._record("rollout", release=release.number, phase=Phase.HALTED.value, reason="withdrawn by the operator")
        self._halt(replace(state, phase=Phase.HALTED, since=self._clock(), paused=False))
        return self.registry.releases.all()[-1][0]

    def _halt(self, state: RolloutState) -> None:
        self.registry.releases.move(state)
        self._publish_rollout(state)
        self._withdraw(state.release)

    def _withdraw(self, number: int) -> None:
        """Going back is a new number that points at old weights."""
        served = self.registry.releases.serving()
        self._announce(self.registry.rounds.bases()[served.base], Phase.DONE, withdraws=number)

    def _asked(self, state: RolloutState) -> dict[str, int]:
        roster = self.registry.roster.active()
        if state.phase is Phase.SHADOW:
            return roster
        rollout = self._rollout(state)
        return {name: id_ for name, id_ in roster.items() if rollout.includes(name)}

    def _announce(self, base: BaseRow, phase: Phase, *, withdraws: int = 0) -> None:
        newest = self.registry.releases.newest()
        number = newest[0].number + 1 if newest else 0
        master = self.master(base)
        release = self._publisher.manifest(number, base.number, master, self._settings.release, withdraws=withdraws)
        state = RolloutState(number, release.artifact[:16], phase, 0, self._clock())
        self.registry.releases.announce(release, state)
        self._publish_release(release, state)
        self._record("release", release=number, base=base.number, withdraws=withdraws)

    def _publish_base(self, base: BaseRow) -> None:
        self._publisher.base(base.number, base.round, self.master(base))
        self.registry.rounds.mark_published(base.number)

    def _publish_release(self, release: Release, state: RolloutState) -> None:
        self._publisher.release(release, self.master(self.registry.rounds.bases()[release.base]))
        self._publish_rollout(state)

    def _publish_rollout(self, state: RolloutState) -> None:
        self._publisher.rollout(self._rollout(state))

    def _rollout(self, state: RolloutState) -> Rollout:
        rollout = rollout_of(state, list(self.registry.roster.active()), self._settings.release.waves)
        return replace(rollout, serving=self.registry.releases.serving().number)


def _longest_honest(task: Task, settings: Settings, size: int, noise_multiplier: float) -> float:
    """A norm that no honest session passes: all clipped gradients in line, and noise of twice its usual length."""
    signal = settings.privacy.partition_examples
    noise = 2 * noise_multiplier * math.sqrt(size)
    step = task.training.step_length(noise_multiplier) * settings.privacy.clipping_norm
    return settings.session_releases * step * (signal + noise)
