"""What a simulation was asked for: from flags to a task, settings and devices, and back from a run's folder."""

import json
import os
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fleet import durable, task
from fleet.check import check, check_run
from fleet.data_check import Count
from fleet.errors import SettingsError, TaskError, UsageError
from fleet.finding import Finding
from fleet.settings import Settings, load
from fleet.signing import canonical
from fleet.task import Recording, Task

if TYPE_CHECKING:
    from simulations.stories.story import Story

Recordings = dict[str, Recording]
BUILT_IN_SETTINGS = Path(__file__).with_name("smartwatch.toml")


@dataclass(frozen=True, slots=True)
class Wish:
    """What the person asked for; an empty field leaves the choice to ``fleet.toml``, or to us."""

    config: str | None = None
    model: str = "features"
    fold: int = 0
    seed: int = 0
    nodes: int | None = None
    rounds: int | None = None
    epsilon: float | None = None
    story: str | None = None

    def save(self, folder: Path, settings: Settings) -> None:
        """Write down what was asked and what it came to, so that ``--resume`` needs no flags and heeds no edits.

        Where ``fleet.toml`` lies as seen from the run's folder stands there too: moved together, they go on.
        """
        fields = asdict(self) | {"epsilon": None if self.epsilon is None else str(self.epsilon)}
        beside = "" if self.config is None else os.path.relpath(_placed(Path(self.config)), folder.resolve())
        saved = {"wish": fields, "settings": settings.to_json(), "config_from_here": beside}
        durable.write(folder / "run.json", canonical(saved))

    @classmethod
    def saved(cls, folder: Path) -> "tuple[Wish, Settings]":
        """The wish of an earlier run, and the settings that it was given.

        Raises:
            UsageError: There is none in ``folder``, or it cannot be read.
        """
        try:
            saved: dict[str, Any] = json.loads((folder / "run.json").read_bytes())
            fields = saved["wish"]
            epsilon = fields.pop("epsilon")
            if fields["config"] and not Path(fields["config"]).exists() and saved.get("config_from_here"):
                fields["config"] = str(_placed(folder.resolve() / saved["config_from_here"]))
            wish = cls(**fields, epsilon=None if epsilon is None else float(epsilon))
            return wish, Settings.from_json(saved["settings"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UsageError(f"{folder} holds no run that can go on; leave out --resume to begin one") from error


def _placed(file: Path) -> Path:
    """``file`` in the real folder that it lies in; what it names is relative to there."""
    return file.parent.resolve() / file.name


@dataclass(frozen=True, slots=True)
class Scenario:
    """A task with its settings, the devices of the fleet, those of the person who is kept out of it, and a story.

    ``warnings`` are what has a price and stops nothing, in the words of ``edgefleet check``.
    """

    task: Task
    settings: Settings
    fleet: Recordings
    held_out: Recordings
    story: "Story | None" = None
    warnings: tuple[str, ...] = ()

    def data_digest(self) -> str:
        """The SHA-256 of every window and label, in hex."""
        digest = sha256()
        for name, seen in sorted((self.fleet | self.held_out).items()):
            digest.update(f"{name} {seen.person} {len(seen.train)} {len(seen.live)} ".encode())
            for windows in (seen.train, seen.live):
                digest.update(np.ascontiguousarray(windows.x).data)
                digest.update(np.asarray(windows.y, np.int64).tobytes())
        return digest.hexdigest()


def scenario(wish: Wish, pinned: Settings | None = None) -> Scenario:
    """Everything that a world needs to begin, or to go on with the settings that it began with.

    Raises:
        UsageError: The wish cannot be granted; says which part of it and why.
    """
    story = _story(wish)
    task_, settings, away = _configured(Path(wish.config), wish) if wish.config else _built_in(wish)
    settings = _asked(settings, wish)
    settings = pinned or (story.settings(settings) if story else settings)
    _check_server_step(settings)
    warnings = []
    for finding in _findings(task_, settings, wish, lambda recordings: len(_roles(recordings, wish, away)[0])):
        said = f"{finding.subject}: {finding.message}"
        if finding.level == "error":
            raise TaskError(said)
        warnings.append(said)
    fleet, held_out = _roles(task_.devices(), wish, away)
    fleet = story.recordings(fleet) if story else fleet
    founders = len(fleet.keys() - story.latecomers(list(fleet))) if story else len(fleet)
    if settings.round.min_updates > founders:
        settings = settings.changed(round={"min_updates": max(2, founders // 2)})
    _check_judging(fleet, held_out)
    return Scenario(task_, settings, fleet, held_out, story, tuple(warnings))


def _check_server_step(settings: Settings) -> None:
    """Refuse what would be refused when half of the run's folder is there."""
    from coordinator.strategy import ServerStep

    ServerStep(settings.round)


def _findings(task_: Task, settings: Settings, wish: Wish, taking_part: Count) -> list[Finding]:
    """The built-in models are known to learn (their tests check it), and their streams to be short.

    A story chooses what its waves can see.
    """
    if not wish.config:
        known = {"release.probation_windows", "live streams"} | ({"release.waves"} if wish.story else set())
        return [finding for finding in check_run(task_, settings, taking_part) if finding.subject not in known]
    from simulations.once import answers, registration

    return check(
        task_,
        settings,
        lambda task, weights: registration(task).warnings,
        taking_part,
        lambda task: answers(task, wish.seed),
    )


def _roles(recordings: Recordings, wish: Wish, away: str) -> tuple[Recordings, Recordings]:
    """The devices of the fleet, and those of the person who is kept out of it: ``away``, or else the fold's."""
    away = away or _person(recordings, wish.fold)
    fleet = _chosen({name: seen for name, seen in recordings.items() if seen.person != away}, wish.nodes)
    return fleet, {name: seen for name, seen in recordings.items() if seen.person == away}


def configured(wish: Wish) -> tuple[Task, Settings]:
    """The task and the settings of a wish, before anything of them is checked."""
    task_, settings, _ = _configured(Path(wish.config), wish) if wish.config else _built_in(wish)
    return task_, _asked(settings, wish)


def _story(wish: Wish) -> "Story | None":
    if wish.story is None:
        return None
    from simulations.stories import story_named

    story = story_named(wish.story)
    story.check(wish)
    return story


def _asked(settings: Settings, wish: Wish) -> Settings:
    if wish.rounds is not None:
        every = max(1, min(settings.release.every_rounds, wish.rounds // 2))
        settings = settings.changed(round={"rounds": wish.rounds}, release={"every_rounds": every})
    if wish.epsilon is not None:
        settings = settings.changed(privacy={"epsilon": wish.epsilon})
    return settings


def _built_in(wish: Wish) -> tuple[Task, Settings, str]:
    from simulations import smartwatch

    task_ = smartwatch.smartwatch(wish.model, wish.fold)  # type: ignore[arg-type] # it checks, and says so
    settings = load(BUILT_IN_SETTINGS)
    if settings.task.file:
        raise UsageError(f"EDGEFLEET_TASK__FILE names {settings.task.file}, but there is no fleet.toml here")
    return task_, settings, smartwatch.held_out(wish.fold)


def _configured(config: Path, wish: Wish) -> tuple[Task, Settings, str]:
    settings = load(config)
    if not settings.task.file:
        raise SettingsError(f'{config}: [task] file is missing, such as file = "task.py:TASK"')
    return task.load(settings.task.file, config.parent), settings, ""


def _person(recordings: Recordings, fold: int) -> str:
    people = sorted({recording.person for recording in recordings.values()})
    if not people:
        raise TaskError("the task has no recordings of devices: there is nothing to play")
    if len(people) < 2:
        raise TaskError("the task's devices belong to one person: one is held out, so there must be two or more")
    if not 0 <= fold < len(people):
        raise UsageError(f"--fold {fold}: the task has people 0 to {len(people) - 1}")
    return people[fold]


def _check_judging(fleet: Recordings, held_out: Recordings) -> None:
    """Refuse what leaves nothing to judge a release by."""
    if not any(len(seen.train) + len(seen.live) for seen in held_out.values()):
        away = next(seen.person for seen in held_out.values())
        raise TaskError(f"{away}, who is held out, has no windows to judge a release by: use another --fold")
    if not any(len(seen.live) for seen in fleet.values()):
        raise TaskError("no device of the fleet has live windows: nothing is answered, and no release is judged")


def _chosen(recordings: Recordings, nodes: int | None) -> Recordings:
    if len(recordings) < 2:
        left = f"{len(recordings)} device{'' if len(recordings) == 1 else 's'}"
        raise TaskError(f"the task leaves {left} for the fleet: two or more average something")
    if nodes is None:
        return recordings
    if nodes > len(recordings):
        raise UsageError(f"--nodes {nodes}: the data has {len(recordings)} devices for the fleet")
    if nodes < 2:
        raise UsageError(f"--nodes {nodes}: a fleet of fewer than 2 averages nothing")
    return dict(sorted(recordings.items())[:nodes])
