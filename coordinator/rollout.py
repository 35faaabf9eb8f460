"""A rollout: shadow for all, serving in waves; what the pooled evidence calls for next."""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from fleet.evidence import Pooled
from fleet.messages import Watch
from fleet.settings import ReleaseSettings


class Phase(StrEnum):
    """Where a release stands in the fleet."""

    SHADOW = "shadow"
    WAVE = "wave"
    DONE = "done"
    KEPT_OLD = "kept-old"
    HALTED = "halted"


RUNNING = frozenset({Phase.SHADOW, Phase.WAVE})


@dataclass(frozen=True, slots=True)
class RolloutState:
    """``wave`` counts open waves; ``since`` is when this phase or this wave began. Paused, nothing moves.

    ``threshold`` is the hash up to which nodes are in the open wave. It is drawn when the wave opens: who comes or
    goes later does not change whom the wave exposed.
    """

    release: int
    salt: str
    phase: Phase
    wave: int
    since: datetime
    paused: bool = False
    threshold: str = ""

    @property
    def watch(self) -> Watch:
        """What nodes are asked about in this phase."""
        return Watch.SHADOW if self.phase is Phase.SHADOW else Watch.PROBATION

    @property
    def stage(self) -> str:
        """What evidence is about in this phase: ``shadow``, or ``wave`` and its number."""
        return f"wave {self.wave}" if self.phase is Phase.WAVE else self.phase.value


def judge(
    state: RolloutState, evidence: Pooled, *, asked: int, settings: ReleaseSettings, now: datetime
) -> RolloutState:
    """The state that the evidence calls for; the same one while reports are missing.

    The shadow evidence is looked at once, when all have reported or patience is over: lacking or against, the old
    model stays. A wave is followed by the next when a quorum of the exposed nodes has reported, or half of them have
    and patience is over, unless their evidence says that the release is worse. Where fewer than both did, they may be
    silent because of the release: the rollout halts. A wave that exposes nobody stays as it is.
    """
    if state.phase not in RUNNING or state.paused or not _is_ripe(state, evidence.reports, asked, settings, now):
        return state
    if state.phase is Phase.SHADOW:
        better = evidence.not_worse(margin=settings.margin, alpha=settings.alpha)
        return replace(state, phase=Phase.WAVE if better else Phase.KEPT_OLD, wave=int(better), since=now)
    silent = evidence.reports < min(settings.quorum(asked), asked / 2)
    if silent or evidence.worse(margin=settings.margin, alpha=settings.alpha):
        return replace(state, phase=Phase.HALTED, since=now)
    if state.wave < len(settings.waves):
        return replace(state, wave=state.wave + 1, since=now)
    return replace(state, phase=Phase.DONE, since=now)


def _is_ripe(state: RolloutState, reports: int, asked: int, settings: ReleaseSettings, now: datetime) -> bool:
    over = abs(now - state.since) >= settings.patience
    if state.phase is Phase.SHADOW:
        return over or reports >= asked
    return asked > 0 and (over or reports >= settings.quorum(asked))
