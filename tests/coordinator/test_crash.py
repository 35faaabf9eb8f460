"""A coordinator killed, or failed by its disk, at any durable step goes on to the end it would have come to."""

import hashlib
import math
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, event

from coordinator.publisher import rollout_of
from coordinator.rollout import Phase
from coordinator.rounds import BaseRow
from fleet import durable
from fleet.messages import Watch
from fleet.quantization import Template
from fleet.release import ROLLOUT_PATH, Base, Release, Rollout, base_path, release_path
from fleet.signing import sha256
from fleet.trust.repository import Repository
from node.installer import FolderFetcher, Installer
from tests.coordinator.conftest import SETTINGS, Fleet
from tests.power_cut import PowerCut

ONE_ROUND = SETTINGS.changed(
    round={"rounds": 1},
    release={"every_rounds": 1, "waves": (0.3, 1.0), "probation_windows": 10, "wave_quorum": 1.0},
)


@contextmanager
def power_for(steps: float, cut: type[BaseException] = PowerCut) -> Iterator[list[str]]:
    """Let ``steps`` durable writes and commits pass, then cut the power or raise what ``cut`` is; what passed.

    Cut instead of step k + 1 is also cut just after step k, so every instant between two steps is tried.
    """
    passed: list[str] = []
    real = durable.write

    def spend(step: str) -> None:
        if len(passed) >= steps:
            raise cut
        passed.append(step)

    def write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
        spend(f"write {path.name}")
        real(path, data, mode=mode)

    ours = threading.get_ident()

    def commit(connection: Connection) -> None:
        if threading.get_ident() != ours:  # another test's program is still ending
            return
        changes = connection.connection.dbapi_connection.total_changes  # type: ignore[union-attr]
        if changes != connection.info.get("changes", 0):  # a transaction that only read is no step
            spend("commit")
            connection.info["changes"] = changes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "write", write)
        event.listen(Engine, "commit", commit)
        try:
            yield passed
        finally:
            event.remove(Engine, "commit", commit)


def play_round(fleet: Fleet) -> None:
    """One round of five honest nodes, who answer if they are waited for; two of them send everything twice."""
    round_ = fleet.coordinator.open_round(asked=True)
    if round_ is None:
        return
    for name in sorted(fleet.coordinator.waiting_for(round_)):
        fleet.answer(round_, *[name] * (2 if name in ("node-1", "node-3") else 1))
    fleet.settle(round_, late=False)


def play_release(fleet: Fleet) -> None:
    """One release from shadow through two waves to everybody."""
    fleet.coordinator.delivery.offer_newest()
    roll_out(fleet, won=1, lost=0)


def play_bad_release(fleet: Fleet) -> None:
    """One release that is halted in its first wave, and its withdrawal."""
    fleet.coordinator.delivery.offer_newest()
    if newest(fleet)[1] is Phase.SHADOW:
        report(fleet, won=1, lost=0)
    roll_out(fleet, won=0, lost=9)


def roll_out(fleet: Fleet, *, won: int, lost: int) -> None:
    fleet.coordinator.delivery.judge()
    for _ in Phase:
        report(fleet, won=won, lost=lost)
    assert fleet.coordinator.registry.releases.running() is None


def report(fleet: Fleet, *, won: int, lost: int) -> None:
    for name in fleet.coordinator.delivery.reporters():
        fleet.report(name, won, lost)
    fleet.coordinator.delivery.judge()


def newest(fleet: Fleet) -> tuple[Release, Phase]:
    found = fleet.coordinator.registry.releases.newest()
    assert found is not None
    return found[0], found[1].phase


@dataclass(frozen=True)
class End:
    """What a story came to, without what may differ: TUF's versions and times."""

    bases: list[BaseRow]
    releases: list[tuple[Release, Phase]]
    rollout: bytes | None
    counted: int
    refused: list[str]
    counts: list[object]

    @classmethod
    def of(cls, fleet: Fleet) -> "End":
        registry = fleet.coordinator.registry
        releases = [(release, state.phase) for release, state in registry.releases.all()]
        return cls(
            bases=fleet.bases,
            releases=releases,
            rollout=fleet.repository.target(ROLLOUT_PATH),
            counted=registry.rounds.counted(),
            refused=fleet.refused,
            counts=[registry.releases.counts(release.number, watch) for release, _ in releases for watch in Watch],
        )


class Floors:
    """What a node has seen, and never forgets."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def read(self) -> dict[str, int]:
        return dict(self.seen)

    def raise_to(self, seen: Mapping[str, int]) -> None:
        self.seen.update({name: max(value, self.seen.get(name, 0)) for name, value in seen.items()})


class Witness:
    """A node that looks at the shelf again and again: its floors refuse whatever fell."""

    def __init__(self, folder: Path, fleet: Fleet) -> None:
        self.fleet = fleet
        self.installer = Installer(
            folder,
            fleet.repository.root_bytes(),
            FolderFetcher(fleet.folder / "repository"),
            Floors(),
            clock=lambda: fleet.now,
        )
        self.numbers = (-1, -1, -1)

    def look(self) -> None:
        """Every base and release on the shelf is whole and is what the registry says of its number."""
        self.installer.refresh()
        registry = self.fleet.coordinator.registry
        for row in registry.rounds.bases():
            base = Base.from_bytes(self.fetch(base_path(row.number, "manifest.json")))
            weights = self.fetch(base_path(row.number, "weights.bin"))
            assert base.payload == row.payload == sha256(weights)
        for release, _ in registry.releases.all():
            assert self.fetch(release_path(release.number, "manifest.json")) == release.to_bytes()
            assert sha256(self.fetch(release_path(release.number, "weights.bin"))) == release.payload
        rollout = Rollout.from_bytes(self.fetch(ROLLOUT_PATH))
        self.compare(rollout)
        numbers = (len(registry.rounds.all()), len(registry.rounds.bases()), rollout.release)
        assert all(new >= old for new, old in zip(numbers, self.numbers, strict=True))
        self.numbers = numbers

    def look_at_what_is_left(self) -> None:
        """While the coordinator is down, the shelf is whole, and says no more than the registry."""
        self.installer.refresh()
        self.compare(Rollout.from_bytes(self.fetch(ROLLOUT_PATH)))

    def compare(self, rollout: Rollout) -> None:
        """No wave is open on the shelf that is not on record."""
        states = {release.number: state for release, state in self.fleet.coordinator.registry.releases.all()}
        recorded = rollout_of(states[rollout.release])
        assert rollout.threshold <= recorded.threshold or recorded.halted

    def fetch(self, path: str) -> bytes:
        data = self.installer.fetch(path)
        assert data is not None, path
        return data


def unreferenced(fleet: Fleet) -> bool:
    """Whether the disk still holds half of a write."""
    return any(path.name.endswith(".part") for path in fleet.folder.rglob("*"))


STORIES: dict[str, tuple[Callable[[Fleet], None], ...]] = {
    "a round": (play_round,),
    "a release": (play_round, play_release),
    "a release and its withdrawal": (play_round, play_bad_release),
}


def start_again(fleet: Fleet) -> None:
    fleet.close()
    fleet.open()


CUTS: dict[str, tuple[type[BaseException], Callable[[Fleet], None]]] = {
    "killed": (PowerCut, start_again),
    "its disk fails once": (OSError, lambda fleet: fleet.coordinator.finish()),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_I1_I5_killed_at_any_durable_step_of_a_round_or_a_release_it_ends_as_if_nothing_had_happened(
    story: tuple[Callable[[Fleet], None], ...],
    how: tuple[type[BaseException], Callable[[Fleet], None]],
    template: Template,
    tmp_path: Path,
) -> None:
    error, recover = how
    *before, last = story
    begun = Fleet(tmp_path / "begun", template, ONE_ROUND)
    for play in before:
        play(begun)
    begun.close()

    def copied(name: str) -> Fleet:
        shutil.copytree(begun.folder, tmp_path / name)
        return Fleet(tmp_path / name, template, ONE_ROUND)

    whole = copied("whole")
    with power_for(math.inf) as steps:
        last(whole)
    expected = End.of(whole)
    assert expected.counted == 5
    assert expected.refused == []
    whole.close()
    for cut in range(len(steps)):
        fleet = copied(f"cut-{cut}")
        witness = Witness(tmp_path / f"witness-{cut}", fleet)
        witness.look()
        with power_for(cut, error), pytest.raises(error):
            last(fleet)
        witness.look_at_what_is_left()
        recover(fleet)
        witness.look()
        last(fleet)
        witness.look()
        assert End.of(fleet) == expected, f"killed before step {cut}: {steps[cut]}"
        assert not unreferenced(fleet)
        fleet.close()
        shutil.rmtree(fleet.folder)


@pytest.mark.slow
def test_I5_killed_at_any_durable_step_of_its_founding_a_coordinator_is_founded(
    template: Template, tmp_path: Path
) -> None:
    with power_for(math.inf) as steps:
        whole = Fleet(tmp_path / "whole", template, ONE_ROUND)
    expected = End.of(whole)
    whole.close()
    for cut in range(len(steps)):
        folder = tmp_path / f"cut-{cut}"
        with power_for(cut), pytest.raises(PowerCut):
            Fleet(folder, template, ONE_ROUND)
        keys = {path.name: path.read_bytes() for path in (folder / "keys").glob("[!.]*")}
        fleet = Fleet(folder, template, ONE_ROUND)
        witness = Witness(tmp_path / f"witness-{cut}", fleet)
        witness.look()
        assert End.of(fleet) == expected, f"killed before step {cut}: {steps[cut]}"
        assert {name: (folder / "keys" / name).read_bytes() for name in keys} == keys
        fleet.close()


def test_a_second_founding_of_the_same_folder_changes_no_byte_of_its_targets(fleet: Fleet, tmp_path: Path) -> None:
    def digests(repository: Repository) -> dict[str, str]:
        files = (path for path in (repository.folder / "targets").rglob("*") if path.is_file())
        return {str(path.name): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    fleet.play_round()
    before = digests(fleet.repository)
    fleet.close()
    fleet.open()
    assert digests(fleet.repository) == before
