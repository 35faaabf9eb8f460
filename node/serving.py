"""Which release answers and which one watches: moves releases through their stages, and the pointer after them."""

import math
from typing import TYPE_CHECKING

from fleet.errors import FleetError, TamperedError, TrustError
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
        self._load()
        self._start()

    def _start(self) -> None:
        try:
            with self._slots.held():
                self._follow()
        except OSError as error:  # a full disk, say: it answers all the same, and the next settling tries again
            self._record("kept", part="pointer", reason=str(error))

    def provision(self, catalog: "Catalog", number: int) -> None:
        """Install a node's first release: verified and admitted; there is nothing to compare it with.

        A node that had one gets the bytes that were damaged again, and what is on trial there stays on trial.

        Raises:
            LinkError: It cannot be fetched.
            TrustError: It must not be served; or nothing that was served here can be fetched again.
        """
        self._repair(catalog)
        if self._stages.proved() is not None:
            if self.active is None:
                raise TrustError(f"{self._node}: what it served is damaged, and could not be fetched again")
            return
        release = catalog.release(number) if self._stages.newest() is None else None
        with self._slots.held():
            if release:
                self._stage(*release)
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
            self._take(rollout, catalog)
        finally:
            self._repair(catalog)

    def is_whole(self) -> bool:
        """Whether nothing that may answer or be watched was damaged on the disk."""
        return all(self._slots.is_whole(number) for number in self._stages.kept())

    def settle(self, rollout: Rollout | None) -> None:
        """Make every move that the evidence calls for now."""
        self._shadow.compare(self.rival, self.active.release if self.active else 0)
        with self._slots.held():
            self._load()  # a child may have ended a trial
            while candidate := self._stages.candidate():
                release, stage = candidate
                move = self._admission(release) if stage is Stage.STAGED else self._next(release, stage, rollout)
                if move is None:
                    break
                self._move(release, *move)
            self._follow()

    def _take(self, rollout: Rollout, catalog: "Catalog") -> None:
        newest = self._stages.newest() or 0
        if rollout.release <= newest:
            return
        self._take_back(catalog.manifest(rollout.release).withdraws)
        if not self._gives_way(rollout):
            return
        missed = rollout.serving > newest
        taken = None if rollout.halted and not missed else rollout.serving if missed else rollout.release
        release = None if taken is None else catalog.release(taken)  # in hand before a trial ends for it
        with self._slots.held():
            if not self._gives_way(rollout):  # its wave opened while this was fetched
                return
            if candidate := self._stages.candidate():
                self._end(candidate[0], "superseded")
            if release:
                self._stage(*release)

    def _take_back(self, withdrawn: int) -> None:
        """End the trial of a release that a newer one withdraws; it waits for no download."""
        with self._slots.held():
            candidate = self._stages.candidate()
            if candidate and 0 < withdrawn == candidate[0]:
                if candidate[1] is Stage.PROBATION:
                    self._move(withdrawn, Stage.ROLLED_BACK, "withdrawn")
                self._end(withdrawn, "withdrawn")

    def _gives_way(self, rollout: Rollout) -> bool:
        """Whether nothing is on trial that must go on to its end."""
        candidate = self._stages.candidate()
        if candidate is None:
            return True
        number, stage = candidate
        return number != rollout.serving and (stage not in _IN_WAVE or rollout.serving > number)

    def _stage(self, release: Release, artifact: bytes, golden: bytes) -> None:
        self._slots.store(release, artifact, golden)
        self._move(release.number, Stage.STAGED, "verified")

    def _end(self, number: int, reason: str) -> None:
        """End a trial for another release. What was not proved here by then is no release to go back to."""
        self._move(number, Stage.REJECTED, reason)
        self._follow()

    def _admission(self, number: int) -> tuple[Stage, str] | None:
        if not self._slots.is_whole(number):  # which says nothing of the release: it waits for its repair
            return None
        try:
            self._check(number)
        except TrustError as error:
            return Stage.REJECTED, str(error)
        return Stage.ADMITTED, "golden outputs match"

    def _check(self, number: int) -> None:
        release = self._slots.release(number)
        self._admit(self._slots.path(number), release, self._slots.golden(number), self._signature.shape)

    def _next(self, number: int, stage: Stage, rollout: Rollout | None) -> tuple[Stage, str] | None:
        release = self._manifest(number)
        watch = WATCH.get(stage, Watch.SHADOW)
        windows, harms = self._shadow.tally(number, watch)
        current = rollout if rollout and rollout.release == number else None
        signs = Signs(
            in_wave=rollout is not None and rollout.admits(number, self._node),
            withdrawn=current is not None and current.halted,
            skips_shadow=release is not None and release.withdraws > 0 and self._was_served_before(release),
            alone=stage in _IN_WAVE and self._is_alone(number),
            harm=harm_evidence(harms),
            windows=windows,
            quota=release.quota(watch) if release else math.inf,
        )
        return next_stage(stage, signs)

    def _is_alone(self, number: int) -> bool:
        """Whether nothing was proved here but what ``number`` takes back."""
        proved = self._stages.proved()
        return proved is None or self._takes_back(number, proved)

    def _was_served_before(self, release: Release) -> bool:
        """Whether a release that this node committed and still holds has the same artifact."""
        others = (self._manifest(number) for number in self._stages.kept() - {release.number})
        return any(other is not None and other.artifact == release.artifact for other in others)

    def _manifest(self, number: int) -> Release | None:
        """None if it is damaged: what harms goes back all the same, and everything else waits for its repair."""
        try:
            return self._slots.release(number)
        except TamperedError:
            return None

    def _move(self, number: int, stage: Stage, reason: str) -> None:
        self._stages.append(number, stage, reason)
        self._record(stage.value, release=number, reason=reason)

    def _repair(self, catalog: "Catalog") -> None:
        """Fetch again what was damaged on the disk: a number stands for the same bytes for ever."""
        for number in sorted(self._stages.kept()):
            if self._slots.is_whole(number):
                continue
            try:
                self._slots.store(*catalog.release(number))
            except (FleetError, OSError) as error:  # it keeps no other release from being taken
                self._record("unrepaired", release=number, reason=str(error))
                continue
            self._damaged.discard(number)
            self._record("repaired", release=number)
            with self._slots.held():
                self._follow()

    def _follow(self) -> None:
        """Memory first, and then the pointer: a disk that takes none holds up no way back."""
        self._load()
        active, previous = self._in_service()
        if active is not None:
            self._slots.point(Pointer(active, previous))
            self._slots.clear(self._stages.ended())  # not all others: another process may be storing a new one

    def _load(self) -> None:
        """Make memory what the log says, as far as the disk allows; nothing is compared with itself."""
        active, previous = self._in_service()
        if active is None:
            return
        back = [] if previous is None else self._ways_back(previous)
        candidate = self._stages.candidate()
        watching = [candidate[0]] if candidate and candidate[1] in UNHEARD else []
        if candidate and candidate[1] is Stage.PROBATION:
            watching = back
        answering, rival = self._opened(active, *back), self._opened(*watching)
        self.active, self.rival = answering, None if rival is answering else rival

    def _ways_back(self, newest: int) -> list[int]:
        """Releases up to ``newest`` that nothing here takes back, the newest first."""
        kept = sorted(self._stages.kept(), reverse=True)
        return [n for n in kept if n <= newest and not any(self._takes_back(m, n) for m in kept if m > n)]

    def _in_service(self) -> tuple[int | None, int | None]:
        """The release that answers, and the one to go back to: the one before it, unless it takes that one back."""
        active, previous = self._stages.serving()
        back = active is not None and previous is not None and self._takes_back(active, previous)
        return active, None if back else previous

    def _takes_back(self, number: int, other: int) -> bool:
        """Whether ``number`` is the withdrawal of ``other``, which then is no way back.

        A withdrawal of a later release that goes back further than ``other`` says that it was withdrawn as well.
        """
        release, taken = self._manifest(number), self._manifest(other)
        if release is None or other > release.withdraws or not release.withdraws:  # 0 withdraws nothing
            return False
        return other == release.withdraws or (taken is not None and taken.base > release.base)

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
