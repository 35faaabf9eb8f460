"""Releases on their way down: offered, asked about, judged wave by wave, paused and withdrawn."""

import math
from collections.abc import Callable, Container
from dataclasses import replace
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.admission import admit_report
from coordinator.asks import INSTRUCTION_LIFE
from coordinator.bases import Bases
from coordinator.publisher import Publisher, rollout_of
from coordinator.registry import Registry
from coordinator.releases import kept
from coordinator.rollout import Phase, RolloutState, judge
from coordinator.rounds import BaseRow
from fleet.errors import RefusedError, TaskError, UsageError
from fleet.events import Record
from fleet.evidence import Pooled
from fleet.messages import ReportInstruction, Watch
from fleet.release import Release, Rollout, wave_threshold
from fleet.settings import Settings
from fleet.signing import Sealed
from fleet.task import Task
from fleet.weights import Flat


class Delivery:
    """Brings one release after the other to the nodes; every step is durable before the next."""

    def __init__(
        self,
        task: Task,
        settings: Settings,
        *,
        registry: Registry,
        bases: Bases,
        publisher: Publisher,
        key: Ed25519PrivateKey,
        clock: Callable[[], datetime],
        record: Record,
    ) -> None:
        """``key`` signs what nodes are asked."""
        self._task = task.name
        self._settings = settings.release
        self._roster = registry.roster
        self._releases = registry.releases
        self._bases = bases
        self._publisher = publisher
        self._key = key
        self._clock = clock
        self._record = record
        self._noise_std = settings.privacy.budget(task.unit.group).report_noise

    def finish(self) -> None:
        """Make release 0, unless it is there; finish what a crash or an error cut short."""
        newest = self._releases.newest()
        if newest is None:
            self._announce(self._bases[0], Phase.DONE)
        else:
            self._publish_release(*newest)
            if newest[1].phase is Phase.HALTED:  # cut short between the halt and its withdrawal
                self._withdraw(newest[0].number)

    def is_due(self) -> bool:
        """Whether enough rounds have passed since the last release, and no rollout is running."""
        if self._releases.running():
            return False
        offered = max(release.base for release, _ in self._releases.all())
        return self._bases.newest().number - offered >= self._settings.every_rounds

    def offer_newest(self) -> None:
        """Make the newest base a release, if one is due."""
        if not self.is_due():
            return
        try:
            self._announce(self._bases.newest(), Phase.SHADOW)
        except TaskError as error:  # the gate: this base stays a base
            self._record("not-offered", base=self._bases.newest().number, reason=str(error))

    def offer(self, weights: Flat) -> None:
        """Offer weights ``(size,)`` that no round made, such as an operator's own: signed and rolled out like any.

        They take a base number, and training goes on from the base before them, under the number after theirs.

        Raises:
            UsageError: Another release is being rolled out.
            TaskError: The gate: they cannot be released.
            ValueError: They are not finite.
        """
        if running := self._releases.running():
            raise UsageError(f"release {running[0].number} is being rolled out: one at a time")
        self._publisher.gate(weights)  # before they take a number
        self._announce(self._bases.bring(weights), Phase.SHADOW)

    def question(self) -> ReportInstruction | None:
        """What nodes should be asked about the running rollout; None if there is none."""
        running = self._releases.running()
        if running is None:
            return None
        release, state = running
        expires = self._clock() + INSTRUCTION_LIFE
        return ReportInstruction(self._task, expires, release.number, state.watch, release.quota(state.watch))

    def sealed(self, instruction: ReportInstruction) -> Sealed:
        """The instruction, signed."""
        return instruction.sealed(self._key)

    def reporters(self) -> dict[str, int]:
        """Flower's ids of the nodes that the running rollout waits for."""
        running = self._releases.running()
        if running is None:
            return {}
        state = running[1]
        counts = self._releases.counts(state.release, state.watch)
        return {name: id_ for name, id_ in self._asked(state).items() if name not in counts}

    def receive(self, instruction: ReportInstruction, node: str, sealed: Sealed) -> None:
        """Admit a report and make it durable, or record why not."""
        try:
            report = admit_report(
                sealed, member=self._roster.member, instruction=instruction, noise_std=self._noise_std
            )
            self._releases.accept(report)
        except RefusedError as error:
            self._record("report-refused", release=instruction.release, node=node, code=error.code, reason=str(error))

    def judge(self) -> None:
        """Let the running rollout take every step that its evidence calls for."""
        while running := self._releases.running():
            release, state = running
            asked = self._asked(state)
            gone = not asked and self._roster.active()  # everybody whom the wave exposed is out of the fleet
            if gone and not state.paused:
                self._go(self._drawn(replace(state, since=self._clock())))
                continue
            evidence = self.evidence(release, state.watch, asked)
            judged = judge(state, evidence, asked=len(asked), settings=self._settings, now=self._clock())
            if judged == state:
                return
            self._move(self._drawn(judged), evidence, judged=state.stage)

    def evidence(self, release: Release, watch: Watch, nodes: Container[str]) -> Pooled:
        """What the reports of some nodes amount to."""
        counts = self._releases.counts(release.number, watch)
        given = [count for name, count in counts.items() if name in nodes]
        return Pooled.of(given, quota=release.quota(watch), noise_std=self._noise_std)

    def _drawn(self, state: RolloutState) -> RolloutState:
        """With the threshold of the wave that opens, if one does."""
        if state.phase is not Phase.WAVE:
            return state
        today = wave_threshold(state.salt, self._roster.active(), self._settings.waves[state.wave - 1])
        return replace(state, threshold=max(today, state.threshold))

    def _move(self, state: RolloutState, evidence: Pooled, *, judged: str) -> None:
        self._record(
            "rollout",
            release=state.release,
            judged=judged,
            phase=state.phase.value,
            wave=state.wave,
            reports=evidence.reports,
            gain=round(evidence.gain, 4),
            error=round(evidence.error, 4) if math.isfinite(evidence.error) else None,
        )
        self._go(state)

    def pause(self, *, paused: bool) -> RolloutState:
        """Let the running rollout stand still, or go on; its patience begins anew.

        Raises:
            RefusedError: ``no-rollout``: none is running.
        """
        running = self._releases.running()
        if running is None:
            raise RefusedError("no-rollout", "no rollout is running")
        state = replace(running[1], paused=paused, since=self._clock())
        self._releases.move(state)
        self._record("rollout-paused" if paused else "rollout-resumed", release=state.release)
        return state

    def withdraw_newest(self) -> Release:
        """Take the newest release back, fleet-wide; the release that points at what was served before.

        Raises:
            RefusedError: ``not-served``: nobody serves it anyway; ``nothing-before``: no earlier one has other weights
                that were not withdrawn.
        """
        *before, (release, state) = self._releases.all()
        if state.phase in (Phase.HALTED, Phase.KEPT_OLD):
            raise RefusedError("not-served", f"release {release.number} is served by nobody")
        halted = replace(state, phase=Phase.HALTED, since=self._clock(), paused=False)
        if not kept([*before, (release, halted)]):
            found = f"no release before {release.number} has other weights that were not withdrawn"
            raise RefusedError("nothing-before", f"{found}: there is nothing to go back to")
        self._record("rollout", release=release.number, phase=Phase.HALTED.value, reason="withdrawn by the operator")
        self._go(halted)
        return self._releases.all()[-1][0]

    def _go(self, state: RolloutState) -> None:
        """A step is on record before it is on the shelf; a halt goes on to its withdrawal."""
        self._releases.move(state)
        self._publish_rollout(state)
        if state.phase is Phase.HALTED:
            self._withdraw(state.release)

    def _withdraw(self, number: int) -> None:
        """Going back is a new number that points at old weights, and not at those that are taken back."""
        served = self._releases.serving()
        self._announce(self._bases[served.base], Phase.DONE, withdraws=number)

    def _asked(self, state: RolloutState) -> dict[str, int]:
        roster = self._roster.active()
        if state.phase is Phase.SHADOW:
            return roster
        rollout = self._rollout(state)
        return {name: id_ for name, id_ in roster.items() if rollout.includes(name)}

    def _announce(self, base: BaseRow, phase: Phase, *, withdraws: int = 0) -> None:
        newest = self._releases.newest()
        number = newest[0].number + 1 if newest else 0
        master = self._bases.master(base)
        release = self._publisher.manifest(number, base.number, master, self._settings, withdraws=withdraws)
        state = RolloutState(number, release.artifact[:16], phase, 0, self._clock())
        self._releases.announce(release, state)
        self._publish_release(release, state)
        self._record("release", release=number, base=base.number, withdraws=withdraws)

    def _publish_release(self, release: Release, state: RolloutState) -> None:
        self._publisher.release(release, self._bases.master(self._bases[release.base]))
        self._publish_rollout(state)

    def _publish_rollout(self, state: RolloutState) -> None:
        self._publisher.rollout(self._rollout(state))

    def _rollout(self, state: RolloutState) -> Rollout:
        return replace(rollout_of(state), serving=self._releases.serving().number)
