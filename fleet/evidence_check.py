"""What the reports of so many devices could show of a release, at best."""

from collections.abc import Iterator

from fleet.errors import BudgetError
from fleet.evidence import Pooled
from fleet.finding import Finding
from fleet.release import wave_size
from fleet.settings import ReleaseSettings, Settings
from fleet.task import Task

USUAL_GAIN = 10  # points that a release may well gain; where fewer are seen, there is nothing to warn of


def check_evidence(task: Task, settings: Settings, nodes: int) -> Iterator[Finding]:
    """What a fleet of ``nodes`` devices could not see of a release, however bad or good."""
    try:
        noise_std = settings.privacy.budget(task.unit.group).report_noise
    except BudgetError:  # said of the settings
        return
    yield from _blind_wave(settings.release, nodes, noise_std)
    yield from _small_gains(settings.release, nodes, noise_std)


def _blind_wave(rollout: ReleaseSettings, nodes: int, noise_std: float) -> Iterator[Finding]:
    """A first wave that cannot halt whatever happens to it is no wave: it takes a release to more nodes unseen."""
    exposed = wave_size(nodes, rollout.waves[0])
    quota, reports = rollout.probation_windows, rollout.quorum(exposed)
    all_lost = Pooled.of([(0, quota)] * reports, quota=quota, noise_std=noise_std)
    if not all_lost.worse(margin=rollout.margin, alpha=rollout.alpha):
        found = f"{exposed} of {nodes} devices are the first wave, with {quota} windows each to judge it"
        yield Finding("warning", "release.waves", f"{found}: too little to halt it, even if every answer turns wrong")


def _small_gains(rollout: ReleaseSettings, nodes: int, noise_std: float) -> Iterator[Finding]:
    """A release that the shadow reports of the whole fleet do not show to be no worse is kept back."""
    quota = rollout.shadow_windows
    seen = next((points for points in range(101) if _opens(points, rollout, nodes, noise_std)), None)
    if seen is None or seen > USUAL_GAIN:
        found = f"{quota} windows of each of {nodes} devices show"
        gain = "no gain at all" if seen is None else f"a gain of {seen} points or more, and no smaller one"
        kept = "every release" if seen is None else "others"
        yield Finding("warning", "release.shadow_windows", f"{found} {gain}: {kept} will mostly be kept back")


def _opens(points: int, rollout: ReleaseSettings, nodes: int, noise_std: float) -> bool:
    """Whether shadow reports of a gain of so many points, and of no loss, open the first wave."""
    windows = nodes * rollout.shadow_windows
    reported = Pooled(windows, points * windows // 100, 0, nodes, noise_std)
    return reported.not_worse(margin=rollout.margin, alpha=rollout.alpha)
