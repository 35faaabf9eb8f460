"""Stories: each one a file, played by ``edgefleet simulate --story NAME``."""

from fleet.errors import UsageError
from simulations.stories.a_new_device import ANewDevice
from simulations.stories.bad_release import BadRelease
from simulations.stories.budget_runs_out import BudgetRunsOut
from simulations.stories.offline_day import OfflineDay
from simulations.stories.poisoned_cohort import PoisonedCohort
from simulations.stories.story import Story

STORIES: dict[str, type[Story]] = {
    story.name: story for story in (BadRelease, OfflineDay, BudgetRunsOut, PoisonedCohort, ANewDevice)
}


def story_named(name: str) -> Story:
    """The story of that name, about to begin.

    Raises:
        UsageError: There is none.
    """
    if name not in STORIES:
        raise UsageError(f"--story {name}: the stories are {', '.join(STORIES)}")
    return STORIES[name]()
