"""Which release answers and which one watches: moves releases through their stages, and the pointer after them."""

from typing import TYPE_CHECKING

from fleet.errors import TamperedError, TrustError
from fleet.events import Record
from fleet.evidence import harm_evidence
from fleet.messages import Watch
from fleet.release import Release, Rollout
from fleet.task import Signature
from node.admission import Admit
from node.predictor import Predictor
from node.promotion import UNHEARD, WATCH, Signs, Stage, StageLog, next_stage
from node.shadow import Shadow
from node.slots import Pointer, Slots

if TYPE_CHECKING:
    from node.catalog import Catalog  # the resident process leaves python-tuf to its children

_PROVISIONED = {
    Stage.STAGED: Stage.ADMITTED,
    Stage.ADMITTED: Stage.SHADOW,
    Stage.SHADOW: Stage.PROBATION,
    Stage.PROBATION: Stage.COMMITTED,
}
_IN_WAVE = frozenset({Stage.PROBATION, Stage.MUTED, Stage.ROLLED_BACK})


class Serving:
    """The models of a node. The stage log decides; pointer and memory follow it, also after a crash."""

    def __init__(
        self,
        node: str,
        signature: Signature,
        *,
        stages: StageLog,
        slots: Slots,
        shadow: Shadow,
        admit: Admit,
        record: Record,
    ) -> None:
        self._node = node
        self._signature = signature
        self._stages = stages
        self._slots = slots
        self._shadow = shadow
        self._admit = admit
        self._record = record
        self.active: Predictor | None = None
        self.rival: Predictor | None = None
        self._damaged: set[int] = set()
        with slots.held():
            self._follow()

    def provision(self, catalog: "Catalog", number: int) -> None:
        """Install a node's first release: verified and admitted; there is nothing to compare it with."""
        if self._stages.newest() is None:
            self._stage(*catalog.release(number))
        while candidate := self._stages.candidate():
            if candidate[1] is Stage.STAGED:
                self._check(candidate[0])
            self._move(candidate[0], _PROVISIONED[candidate[1]], "provisioned")
        self._follow()

    def consider(self, rollout: Rollout, catalog: "Catalog") -> None:
        """Stage the release that the rollout offers, unless it was tried before or another is on probation.

        A node that was away while the release was rolled out that everybody else serves takes that one first: it was
        never taken back, for then everybody would serve another.

        A trial whose wave is open goes on to its end, refused or not, unless the offer takes the release back. It also
        ends when everybody serves a newer one: a node that learns no truth about its answers would never see the end,
        and never take another release. Nothing that was labelled decides when.
        """
        try:
            self._repair(catalog)
        finally:  # a release that cannot be fetched again keeps no other from being taken
            self._consider(rollout, catalog)

    def settle(self, rollout: Rollout | None) -> None:
        """Make every move that the evidence calls for now."""
        self._shadow.compare(self.rival, self.active.release if self.active else 0)
        with self._slots.held():
            while candidate := self._stages.candidate():
                release, stage = candidate
                move = self._admission(release) if stage is Stage.STAGED else self._next(release, stage, rollout)
                if move is None:
                    break
                self._move(release, *move)
            self._follow()

    def _consider(self, rollout: Rollout, catalog: "Catalog") -> None:
        newest = self._stages.newest() or 0
        if rollout.release <= newest:
            return
        withdraws = catalog.manifest(rollout.release).withdraws
        if not self._gives_way(rollout, withdraws):
            return
        missed = rollout.serving > newest
        taken = None if rollout.halted and not missed else rollout.serving if missed else rollout.release
        release = None if taken is None else catalog.release(taken)  # in hand before a trial ends for it
        with self._slots.held():
            if not self._gives_way(rollout, withdraws):  # its wave opened while this was fetched
                return
            if candidate := self._stages.candidate():
                self._end(*candidate, withdrawn=0 < withdraws == candidate[0])
            if release:
                self._stage(*release)

    def _gives_way(self, rollout: Rollout, withdraws: int) -> bool:
        """Whether nothing is on trial that must go on to its end."""
        candidate = self._stages.candidate()
        if candidate is None or 0 < withdraws == candidate[0]:
            return True
        number, stage = candidate
        return number != rollout.serving and (stage not in _IN_WAVE or rollout.serving > number)

    def _stage(self, release: Release, artifact: bytes, golden: bytes) -> None:
        self._slots.store(release, artifact, golden)
        self._move(release.number, Stage.STAGED, "verified")

    def _end(self, number: int, stage: Stage, *, withdrawn: bool) -> None:
        """End a trial for another release. What was not proved here by then is no release to go back to."""
        if withdrawn and stage is Stage.PROBATION:
            self._move(number, Stage.ROLLED_BACK, "withdrawn")
        self._move(number, Stage.REJECTED, "withdrawn" if withdrawn else "superseded")
        self._follow()

    def _admission(self, number: int) -> tuple[Stage, str]:
        try:
            self._check(number)
        except TrustError as error:
            return Stage.REJECTED, str(error)
        return Stage.ADMITTED, "golden outputs match"

    def _check(self, number: int) -> None:
        release = self._slots.release(number)
        self._admit(self._slots.path(number), release, self._slots.golden(number), self._signature.shape)

    def _next(self, number: int, stage: Stage, rollout: Rollout | None) -> tuple[Stage, str] | None:
        release = self._slots.release(number)
        watch = WATCH.get(stage, Watch.SHADOW)
        pairs = self._shadow.pairs(number, watch)
        current = rollout if rollout and rollout.release == number else None
        signs = Signs(
            in_wave=rollout is not None and rollout.admits(number, self._node),
            withdrawn=current is not None and current.halted,
            skips_shadow=release.withdraws > 0 and release.artifact in self._served_before(number),
            alone=stage is Stage.PROBATION and self._in_service()[1] is None,
            harm=harm_evidence(pair.harm for pair in pairs),
            windows=len(pairs),
            quota=release.quota(watch),
        )
        return next_stage(stage, signs)

    def _served_before(self, number: int) -> set[str]:
        """Artifacts that this node committed before ``number`` and still holds."""
        return {self._slots.release(other).artifact for other in self._stages.kept() - {number}}

    def _move(self, number: int, stage: Stage, reason: str) -> None:
        self._stages.append(number, stage, reason)
        self._record(stage.value, release=number, reason=reason)

    def _repair(self, catalog: "Catalog") -> None:
        """Fetch again what was damaged on the disk: a number stands for the same bytes for ever."""
        for number in sorted(self._stages.kept()):
            if not self._slots.is_whole(number):
                self._slots.store(*catalog.release(number))
                self._damaged.discard(number)
                self._record("repaired", release=number)
                with self._slots.held():
                    self._follow()

    def _follow(self) -> None:
        """Make pointer and memory what the log says."""
        active, previous = self._in_service()
        if active is None:
            return
        self._slots.point(Pointer(active, previous))
        candidate = self._stages.candidate()
        rival = None
        if candidate and candidate[1] is Stage.PROBATION:
            rival = previous
        elif candidate and candidate[1] in UNHEARD:
            rival = candidate[0]
        self.active, self.rival = self._opened(active, previous), self._opened(rival)
        self._slots.clear(self._stages.ended())  # not all others: another process may be storing a new one

    def _in_service(self) -> tuple[int | None, int | None]:
        """The release that answers, and the one to go back to: the one before it, unless it takes that one back."""
        active, previous = self._stages.serving()
        back = active is not None and previous is not None and self._takes_back(active, previous)
        return active, None if back else previous

    def _takes_back(self, number: int, other: int) -> bool:
        """Whether ``number`` is the withdrawal of ``other``, which then is no way back."""
        try:
            return 0 < self._slots.release(number).withdraws == other  # 0 withdraws nothing, release 0 neither
        except TamperedError:
            return False

    def _opened(self, *numbers: int | None) -> Predictor | None:
        """The first of these releases whose bytes were not damaged on the disk."""
        for number in numbers:
            if number is not None:
                try:
                    return self._open(number)
                except TamperedError as error:
                    if number not in self._damaged:  # it is so at every step, until it is repaired
                        self._damaged.add(number)
                        self._record("damaged", release=number, reason=str(error))
        return None

    def _open(self, number: int) -> Predictor:
        for predictor in (self.active, self.rival):
            if predictor is not None and predictor.release == number:
                return predictor
        return Predictor(number, self._slots.artifact(number), self._signature)
