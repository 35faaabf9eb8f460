"""The coordinator's TUF repository, and what a node sees of it."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fleet import durable
from fleet.errors import TamperedError, UsageError
from fleet.trust.keys import Keyring
from fleet.trust.repository import LIFETIME, Repository
from node.installer import FolderFetcher, Installer
from tests.power_cut import PowerCut, power_for_writes

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
PLAN = "rollout/stable.json"


class Forgetful:
    """Floors of a node that is new each time."""

    def read(self) -> dict[str, int]:
        return {}

    def raise_to(self, seen: Mapping[str, int]) -> None:
        """A new node has seen nothing."""


class World:
    """A repository, and nodes that look at it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = NOW
        self.repository = self.restarted()

    def restarted(self) -> Repository:
        return Repository(self.folder / "repository", Keyring.create(self.folder / "keys"), clock=lambda: self.now)

    def node(self, name: str = "node") -> Installer:
        fetcher = FolderFetcher(self.folder / "repository")
        root = self.repository.root_bytes()
        return Installer(self.folder / name, root, fetcher, Forgetful(), clock=lambda: self.now)

    def seen(self, path: str, name: str = "node") -> bytes | None:
        node = self.node(name)
        node.refresh()
        return node.fetch(path)

    def signed(self, name: str) -> dict[str, Any]:
        """The ``signed`` part of a metadata file."""
        part: dict[str, Any] = json.loads((self.folder / "repository/metadata" / name).read_bytes())["signed"]
        return part


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.repository.create()
    return world


def base(number: int, name: str = "weights.bin") -> str:
    return f"bases/{number:08d}/{name}"


def test_a_node_fetches_what_was_published(world: World) -> None:
    world.repository.publish("releases", {base(1): b"one", "templates/ab.bin": b"graph"})
    world.repository.publish("rollout", {PLAN: b"{}"})
    node = world.node()
    node.refresh()
    assert [node.fetch(path) for path in (base(1), "templates/ab.bin", PLAN)] == [b"one", b"graph", b"{}"]


def test_roles_expire_as_the_key_table_says(world: World) -> None:
    world.repository.publish("rollout", {PLAN: b"{}"})
    files = {"root": "1.root.json", "targets": "1.targets.json", "releases": "1.releases.json"}
    files |= {"rollout": "2.rollout.json", "snapshot": "3.snapshot.json", "timestamp": "timestamp.json"}
    for role, name in files.items():
        assert world.signed(name)["expires"] == f"{NOW + LIFETIME[role]:%Y-%m-%dT%H:%M:%SZ}"


@pytest.mark.parametrize("cut", range(6))
def test_a_repository_cut_short_is_finished_with_the_same_root(tmp_path: Path, cut: int) -> None:
    world = World(tmp_path)
    with power_for_writes(cut), pytest.raises(PowerCut):
        world.repository.create()
    root = tmp_path / "repository/metadata/1.root.json"
    before = root.read_bytes() if cut else None
    world.now += timedelta(hours=1)
    world.repository = world.restarted()
    world.repository.create()
    world.repository.create()
    assert before in (None, root.read_bytes())
    assert not root.with_name("2.root.json").exists()
    assert world.seen(PLAN) is None


@pytest.mark.parametrize("restart", [pytest.param(False, id="same process"), pytest.param(True, id="restarted")])
@pytest.mark.parametrize("cut", range(5))
def test_a_publication_cut_short_is_seen_as_the_old_one_and_healed_by_the_next(
    world: World, cut: int, restart: bool
) -> None:
    world.repository.publish("releases", {base(1): b"one"})
    two = {base(2): b"two", base(2, "manifest.json"): b"{}"}
    node = world.node()
    node.refresh()
    with power_for_writes(cut), pytest.raises(PowerCut):
        world.repository.publish("releases", two)
    node.refresh()
    assert (node.fetch(base(1)), node.fetch(base(2))) == (b"one", None)
    world.repository = world.restarted() if restart else world.repository
    world.repository.publish("releases", two)
    node.refresh()
    assert [node.fetch(path) for path in (base(1), *two)] == [b"one", b"two", b"{}"]


def test_a_version_is_not_used_again_if_the_write_that_published_it_failed_late(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = durable.write

    def fail_late(path: Path, data: bytes, *, mode: int = 0o644) -> None:
        real(path, data, mode=mode)
        if path.name == "timestamp.json":
            raise OSError("the folder could not be flushed")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write", fail_late)
        with pytest.raises(OSError, match="flushed"):
            world.repository.publish("releases", {base(1): b"one"})
    node = world.node()
    node.refresh()
    world.repository.publish("releases", {base(2): b"two"})
    node.refresh()
    assert (node.fetch(base(1)), node.fetch(base(2))) == (b"one", b"two")


def test_other_bytes_may_follow_a_publication_that_nobody_saw(world: World) -> None:
    with power_for_writes(3), pytest.raises(PowerCut):
        world.repository.publish("releases", {base(1): b"one"})
    world.repository.publish("releases", {base(1): b"another one"})
    assert world.seen(base(1)) == b"another one"


def test_publishing_the_same_again_writes_nothing(world: World) -> None:
    world.repository.publish("releases", {base(1): b"one"})
    with power_for_writes(0):
        world.repository.publish("releases", {base(1): b"one"})


def test_publishing_the_same_again_restores_a_lost_file(world: World) -> None:
    world.repository.publish("releases", {base(1): b"one"})
    (lost,) = (world.folder / "repository/targets/bases/00000001").iterdir()
    lost.unlink()
    with pytest.raises(TamperedError, match=base(1)):
        world.repository.target(base(1))
    world.repository.publish("releases", {base(1): b"one"})
    assert world.repository.target(base(1)) == b"one"


@pytest.mark.parametrize("path", [base(1), "releases/00000001/golden.bin", "templates/ab.bin"])
def test_a_number_is_written_once(world: World, path: str) -> None:
    world.repository.publish("releases", {path: b"one"})
    with pytest.raises(TamperedError, match="published with other bytes"):
        world.restarted().publish("releases", {base(2): b"two", path: b"other"})
    assert (world.seen(path), world.seen(base(2))) == (b"one", None)


def test_a_rollout_may_change(world: World) -> None:
    world.repository.publish("rollout", {PLAN: b"5 %"})
    world.repository.publish("rollout", {PLAN: b"25 %"})
    assert world.seen(PLAN) == world.repository.target(PLAN) == b"25 %"


@pytest.mark.parametrize(
    ("role", "path"),
    [
        pytest.param("rollout", base(1), id="another role's"),
        pytest.param("releases", PLAN, id="the rollout's"),
        pytest.param("releases", "bases/1/weights.bin", id="a second spelling of a number"),
        pytest.param("releases", "bases/00000001/../weights.bin", id="deeper"),
        pytest.param("releases", "templates/..", id="upwards"),
        pytest.param("releases", "templates/.hidden", id="hidden"),
        pytest.param("releases", "other/00000001/x", id="nobody's"),
        pytest.param("releases", base(1) + "\n", id="with a line end"),
    ],
)
def test_a_path_that_is_not_the_roles_is_refused(world: World, role: str, path: str) -> None:
    with pytest.raises(ValueError, match="does not sign"):
        world.repository.publish(role, {path: b""})


def test_old_bases_are_no_longer_listed_and_releases_stay(world: World) -> None:
    world.repository.publish("releases", {"releases/00000001/manifest.json": b"{}"})
    for number in range(1, 5):
        world.repository.publish("releases", {base(number): b"%d" % number}, keep=2)
    assert [world.seen(base(number)) for number in range(1, 5)] == [None, None, b"3", b"4"]
    assert world.seen("releases/00000001/manifest.json") == b"{}"
    with pytest.raises(TamperedError, match="numbers only grow"):
        world.repository.publish("releases", {base(1): b"other"}, keep=2)


def test_a_restarted_repository_continues_the_version_numbers(world: World) -> None:
    versions = []
    for number in range(1, 4):
        world.restarted().publish("releases", {base(number): b"x"})
        versions.append(world.signed("timestamp.json")["version"])
        assert world.seen(base(number)) == b"x"
    assert versions == [3, 4, 5]


def test_a_heartbeat_signs_only_the_timestamp_while_the_rest_is_young(world: World) -> None:
    before = sorted(path.name for path in (world.folder / "repository/metadata").iterdir())
    world.now += timedelta(hours=20)
    world.repository.heartbeat()
    world.now += timedelta(hours=20)
    assert world.seen(PLAN) is None
    assert sorted(path.name for path in (world.folder / "repository/metadata").iterdir()) == before


@pytest.mark.parametrize("away", [timedelta(days=4), timedelta(days=8), timedelta(days=200), timedelta(days=364)])
def test_a_heartbeat_renews_whatever_is_past_half_of_its_life(world: World, away: timedelta) -> None:
    world.repository.publish("releases", {base(1): b"one"})
    world.now += away
    world.restarted().heartbeat()
    for role in ("root", "targets", "releases", "rollout", "snapshot"):
        newest = max((world.folder / "repository/metadata").glob(f"*.{role}.json"))
        left = datetime.fromisoformat(world.signed(newest.name)["expires"]) - world.now
        assert left >= LIFETIME[role] / 2
    assert world.seen(base(1)) == b"one"


@pytest.mark.parametrize("seen", [pytest.param(True, id="a node that looks"), pytest.param(False, id="one away")])
def test_two_years_of_heartbeats_leave_no_node_behind(world: World, seen: bool) -> None:
    world.repository.publish("releases", {base(1): b"one"})
    first = world.repository.first_root_bytes()
    fetcher = FolderFetcher(world.folder / "repository")
    node = Installer(world.folder / "node", first, fetcher, Forgetful(), clock=lambda: world.now)
    node.refresh()
    for _ in range(2 * 73):
        world.now += timedelta(days=5)
        world.repository.heartbeat()
        if seen:
            node.refresh()
    world.restarted().publish("releases", {base(2): b"two"})
    node.refresh()
    assert [node.fetch(base(number)) for number in (1, 2)] == [b"one", b"two"]
    assert world.repository.first_root_bytes() == first


@pytest.mark.parametrize("cut", range(6))
def test_a_renewed_root_survives_a_power_cut(world: World, cut: int) -> None:
    world.repository.publish("releases", {base(1): b"one"})
    world.now += timedelta(days=364)
    with power_for_writes(cut), pytest.raises(PowerCut):
        world.repository.heartbeat()
    world.now += timedelta(days=2)
    world.restarted().heartbeat()
    assert world.seen(base(1)) == b"one"


def test_a_repository_that_was_not_created_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="create it first"):
        World(tmp_path).repository.heartbeat()


@pytest.mark.parametrize("name", ["1.root.json", "1.targets.json", "2.releases.json", "3.snapshot.json"])
def test_a_restarted_repository_does_not_sign_what_was_slipped_onto_its_disk(world: World, name: str) -> None:
    world.repository.publish("releases", {base(1): b"one"})
    path = world.folder / "repository/metadata" / name
    path.write_bytes(path.read_bytes().replace(b'"expires":"202', b'"expires":"203'))
    with pytest.raises(TamperedError, match=name):
        world.restarted().heartbeat()


def test_a_restarted_repository_does_not_continue_from_an_older_file_under_a_newer_name(world: World) -> None:
    world.repository.publish("releases", {base(1): b"one"})
    metadata = world.folder / "repository/metadata"
    (metadata / "2.releases.json").write_bytes((metadata / "1.releases.json").read_bytes())
    with pytest.raises(TamperedError, match=r"2\.releases\.json"):
        world.restarted().heartbeat()


def test_a_repository_of_other_keys_is_refused(world: World) -> None:
    strangers = Keyring.create(world.folder / "strangers")
    with pytest.raises(TamperedError, match="other keys"):
        Repository(world.folder / "repository", strangers, clock=lambda: NOW).create()


def test_nothing_is_published_with_a_key_that_was_made_anew(world: World) -> None:
    (world.folder / "keys/releases.pem").unlink()
    with pytest.raises(UsageError, match="cannot sign this repository's releases"):
        world.restarted().publish("releases", {base(1): b"one"})
    assert world.seen(base(1)) is None
