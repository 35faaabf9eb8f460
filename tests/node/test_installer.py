"""What a hostile coordinator, mirror, network or clock can do to a node: nothing but make it wait."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.exceptions import DownloadError, DownloadHTTPError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import Updater
from urllib3.exceptions import ProtocolError

from fleet.errors import DowngradeError, ExpiredError, FleetError, LinkError, SignatureError
from fleet.trust.keys import Keyring
from fleet.trust.repository import Repository
from node import installer
from node.floors import CLOCK, SqliteFloors
from node.installer import FolderFetcher, Installer
from node.store import open_store

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
PLAN = "rollout/stable.json"


class Mirror(FolderFetcher):
    """The repository's folder, except for what somebody on the way serves instead."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.instead: dict[str, Callable[[], Iterator[bytes]]] = {}
        self.asked: list[str] = []

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix("file:///")
        self.asked.append(name)
        return self.instead[name]() if name in self.instead else super()._fetch(url)


class World:
    """A coordinator, a mirror that an attacker may own, and a node that has base 1."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = NOW
        self.node_clock: Callable[[], datetime] = lambda: self.now
        self.keys = Keyring.create(folder / "keys")
        self.repository = Repository(folder / "repository", self.keys, clock=lambda: self.now)
        self.repository.create()
        self.root = self.repository.root_bytes()
        self.store = open_store(folder / "node.sqlite")
        self.floors = SqliteFloors(self.store)
        self.mirror = Mirror(self.repository.folder)
        self.publish(1)
        self.repository.publish("rollout", {PLAN: b"{}"})
        self.node = self.restarted_node()
        assert self.pull(base(1)) == content(1)
        self.old = folder / "old"
        shutil.copytree(self.repository.folder, self.old, dirs_exist_ok=True)

    def restarted_node(self) -> Installer:
        return Installer(self.folder / "node", self.root, self.mirror, self.floors, clock=lambda: self.node_clock())

    def pull(self, path: str) -> bytes | None:
        self.node.refresh()
        return self.node.fetch(path)

    def publish(self, number: int) -> None:
        self.repository.publish("releases", {base(number): content(number)})

    def lose_the_cache(self) -> None:
        shutil.rmtree(self.folder / "node")

    def serve_the_old_repository(self) -> None:
        self.mirror._folder = str(self.old)

    def instead(self, name: str, data: bytes) -> None:
        self.mirror.instead[name] = lambda: iter([data])

    def path(self, role: str, version: int | None = None) -> Path:
        folder = self.repository.folder / "metadata"
        if role == "timestamp":
            return folder / "timestamp.json"
        return folder / f"{version}.{role}.json" if version else max(folder.glob(f"*.{role}.json"))


def base(number: int) -> str:
    return f"bases/{number:08d}/weights.bin"


def content(number: int) -> bytes:
    return b"base %d, " % number * 100


def file_of(number: int) -> str:
    return f"targets/bases/{number:08d}/{sha256(content(number)).hexdigest()}.weights.bin"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    World(folder).store.close()
    return folder


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Iterator[World]:
    """A world as it was made, copied: durable writes take their time."""
    world = World(shutil.copytree(made, tmp_path / "world"))
    yield world
    world.store.close()


def sign(path: Path, signed: Signed, signers: list[Signer]) -> MetaFile:
    metadata = Metadata(signed)  # type: ignore[type-var]
    for signer in signers:
        metadata.sign(signer, append=True)
    path.write_bytes(metadata.to_bytes())
    return MetaFile.from_data(signed.version, metadata.to_bytes(), ["sha256"])


def forge(
    world: World, role: str, signers: list[Signer], edit: Callable[[Targets], None] = lambda targets: None
) -> None:
    """What a thief of the online key can do: a new ``role``, signed by ``signers``, under a true snapshot."""
    was = Metadata[Targets].from_bytes(world.path(role).read_bytes()).signed
    was.version += 1
    edit(was)
    meta = sign(world.path(role, was.version), was, signers)
    snapshot = Metadata[Snapshot].from_bytes(world.path("snapshot").read_bytes()).signed
    snapshot.version += 1
    snapshot.meta[f"{role}.json"] = meta
    snapshot_meta = sign(world.path("snapshot", snapshot.version), snapshot, world.keys.signers("snapshot"))
    timestamp = Metadata[Timestamp].from_bytes(world.path("timestamp").read_bytes()).signed
    timestamp.version += 1
    timestamp.snapshot_meta = snapshot_meta
    sign(world.path("timestamp"), timestamp, world.keys.signers("timestamp"))


def alter(role: str) -> Callable[[World], None]:
    def attack(world: World) -> None:
        path = world.path(role)
        altered = path.read_bytes().replace(b'"expires":"202', b'"expires":"203')
        assert altered != path.read_bytes()
        path.write_bytes(altered)
        world.lose_the_cache()

    return attack


def lengthen(role: str) -> Callable[[World], None]:
    def attack(world: World) -> None:
        world.path(role).write_bytes(world.path(role).read_bytes() + b" " * 9_000)

    return attack


def alter_target(world: World) -> None:
    path = world.repository.folder / file_of(2)
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)


def endless(name: str) -> Callable[[World], None]:
    def stream(world: World) -> Iterator[bytes]:
        for sent in range(100):
            world.mirror.asked.append(f"chunk {sent}")
            yield b"x" * 65_536
        pytest.fail("6.5 MB were read")

    def attack(world: World) -> None:
        world.mirror.instead[name] = lambda: stream(world)

    return attack


def roll_back(world: World) -> None:
    world.node.refresh()
    world.serve_the_old_repository()


def roll_back_after_a_power_cut(world: World) -> None:
    roll_back(world)
    for role in ("timestamp", "snapshot"):
        (world.folder / f"node/{role}.json").write_bytes(b"")


def roll_back_after_losing_the_cache(world: World) -> None:
    roll_back(world)
    world.lose_the_cache()


def freeze(world: World) -> None:
    world.serve_the_old_repository()
    world.now += timedelta(hours=24)


def old_releases_under_the_new_name(world: World) -> None:
    world.instead(f"metadata/{world.path('releases').name}", (world.old / "metadata/2.releases.json").read_bytes())


def old_snapshot_under_the_new_name(world: World) -> None:
    world.instead(f"metadata/{world.path('snapshot').name}", (world.old / "metadata/4.snapshot.json").read_bytes())
    world.lose_the_cache()


def sign_with(role: str, signer_role: str | None) -> Callable[[World], None]:
    def attack(world: World) -> None:
        stranger: list[Signer] = [CryptoSigner.generate_ed25519()]
        forge(world, role, world.keys.signers(signer_role) if signer_role else stranger)

    return attack


def one_role_as_another(world: World) -> None:
    shutil.copy(world.path("rollout"), world.path("timestamp"))


def replay_expired_metadata_to_a_node_in_1970(world: World) -> None:
    world.now += timedelta(days=2)
    world.repository.heartbeat()
    world.node.refresh()
    world.now -= timedelta(days=2)
    world.repository.heartbeat()  # the newest version, and valid for a day in the past
    world.node_clock = lambda: datetime(1970, 1, 2, tzinfo=UTC)


def set_the_clock_ten_years_ahead(world: World) -> None:
    world.node_clock = lambda: NOW + timedelta(days=3652)


def new_root(world: World, signers: list[Signer], edit: Callable[[Root], None]) -> None:
    root = Metadata[Root].from_bytes(world.path("root", 1).read_bytes()).signed
    root.version = 2
    edit(root)
    sign(world.path("root", 2), root, signers)


def swap_online_keys(new: Signer) -> Callable[[Root], None]:
    def edit(root: Root) -> None:
        for role in ("timestamp", "snapshot"):
            root.revoke_key(root.roles[role].keyids[0], role)
            root.add_key(new.public_key, role)

    return edit


def usurp_the_root(world: World) -> None:
    thief = CryptoSigner.generate_ed25519()
    new_root(world, [thief, *world.keys.signers("timestamp")], swap_online_keys(thief))


def enormous_target(world: World) -> None:
    def edit(releases: Targets) -> None:
        releases.targets[base(2)] = TargetFile(2**40, {"sha256": "0" * 64}, base(2))

    forge(world, "releases", world.keys.signers("releases"), edit)


@pytest.mark.parametrize(
    ("attack", "error"),
    [
        pytest.param(alter_target, SignatureError, id="flipped bit in a base"),
        pytest.param(alter("timestamp"), SignatureError, id="tampered timestamp"),
        pytest.param(alter("snapshot"), SignatureError, id="tampered snapshot"),
        pytest.param(alter("releases"), SignatureError, id="tampered releases"),
        pytest.param(alter("rollout"), SignatureError, id="tampered rollout"),
        pytest.param(alter("targets"), SignatureError, id="tampered targets"),
        pytest.param(lambda w: forge(w, "rollout", []), SignatureError, id="unsigned rollout"),
        pytest.param(lambda w: forge(w, "targets", []), SignatureError, id="unsigned targets"),
        pytest.param(lengthen("timestamp"), SignatureError, id="longer timestamp"),
        pytest.param(lengthen("releases"), SignatureError, id="longer releases"),
        pytest.param(endless("metadata/timestamp.json"), SignatureError, id="endless timestamp"),
        pytest.param(endless("metadata/2.root.json"), SignatureError, id="endless root"),
        pytest.param(endless(file_of(2)), SignatureError, id="endless base"),
        pytest.param(enormous_target, SignatureError, id="a terabyte, signed with a stolen key"),
        pytest.param(roll_back, DowngradeError, id="whole repository rolled back"),
        pytest.param(roll_back_after_a_power_cut, DowngradeError, id="rolled back after a power cut"),
        pytest.param(roll_back_after_losing_the_cache, DowngradeError, id="rolled back after losing the cache"),
        pytest.param(freeze, ExpiredError, id="freeze"),
        pytest.param(old_releases_under_the_new_name, SignatureError, id="mix and match, releases"),
        pytest.param(old_snapshot_under_the_new_name, SignatureError, id="mix and match, snapshot"),
        pytest.param(sign_with("releases", None), SignatureError, id="a stranger's key"),
        pytest.param(sign_with("releases", "timestamp"), SignatureError, id="role confusion, online for releases"),
        pytest.param(sign_with("releases", "rollout"), SignatureError, id="role confusion, rollout for releases"),
        pytest.param(sign_with("rollout", "releases"), SignatureError, id="role confusion, releases for rollout"),
        pytest.param(sign_with("targets", "releases"), SignatureError, id="role confusion, releases for targets"),
        pytest.param(one_role_as_another, SignatureError, id="rollout served as timestamp"),
        pytest.param(usurp_the_root, SignatureError, id="a root that the old root did not sign"),
        pytest.param(replay_expired_metadata_to_a_node_in_1970, ExpiredError, id="the clock says 1970"),
        pytest.param(set_the_clock_ten_years_ahead, ExpiredError, id="the clock is ten years ahead"),
    ],
)
def test_an_attack_gets_nothing_new_in_and_nothing_old_out(
    world: World, attack: Callable[[World], None], error: type[FleetError]
) -> None:
    world.publish(2)
    attack(world)
    with pytest.raises(error) as refused:
        world.pull(base(2))
    assert type(refused.value) is error
    assert "\n" not in str(refused.value)
    if error is not ExpiredError:  # then nothing is new, and what runs runs on without us
        assert world.node.fetch(base(1)) == content(1)
    world.node = world.restarted_node()
    with pytest.raises(error):
        world.pull(base(2))


@pytest.mark.parametrize(
    "bomb",
    [
        pytest.param(b"[" * 3_900, id="deep lists"),
        pytest.param(b'{"signed":' + b'{"a":' * 600 + b"1" + b"}" * 601, id="deep objects"),
        pytest.param(b'{"signed":' + b"9" * 3_900 + b"}", id="a long number"),
        pytest.param(b"\xff\xfe", id="no text"),
        pytest.param(b'{"signatures":[],"signed":{"_type":"timestamp","x":"\\ud800"}}', id="half a character"),
        pytest.param(b"", id="empty"),
        pytest.param(b"null", id="null"),
        pytest.param(b'{"signatures":[],"signed":{}}', id="no fields"),
        pytest.param(b'{"signatures":[{"keyid":[],"sig":""}],"signed":{"_type":"timestamp"}}', id="odd types"),
    ],
)
def test_a_json_bomb_is_an_invalid_signature(world: World, bomb: bytes) -> None:
    world.instead("metadata/timestamp.json", bomb)
    with pytest.raises(SignatureError):
        assert world.pull(base(1)) == content(1)


def mutations(value: Any) -> Iterator[Any]:
    """``value`` with each part replaced, in turn, by something odd."""
    odd: list[Any] = [None, -1, 1e308, "", "\ud800", [], {}, [[]], {"": None}, True, 2**70]
    yield from odd
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        for part in mutations(value[key]):
            copy = dict(value) if isinstance(value, dict) else list(value)
            copy[key] = part
            yield copy


def test_no_malformed_metadata_ends_in_an_error_that_is_not_ours(world: World) -> None:
    honest = json.loads(world.path("timestamp").read_bytes())
    for mutation in mutations(honest):
        world.instead("metadata/timestamp.json", json.dumps(mutation).encode())
        with suppress(FleetError):
            world.node.refresh()
        assert world.node.fetch(base(1)) == content(1)


def broken_after_a_chunk() -> Iterator[bytes]:
    yield b"{"
    raise ProtocolError("the connection broke")


def no_answer() -> Iterator[bytes]:
    raise DownloadError("no route")


def error_500() -> Iterator[bytes]:
    raise DownloadHTTPError("HTTP 500", 500)


def lost_stick() -> Iterator[bytes]:
    yield b"{"
    raise OSError("input/output error")


@pytest.mark.parametrize("failure", [broken_after_a_chunk, no_answer, error_500, lost_stick])
@pytest.mark.parametrize("name", ["metadata/timestamp.json", "metadata/2.root.json", file_of(2)])
def test_a_failing_network_is_a_link_error_and_the_next_try_succeeds(
    world: World, failure: Callable[[], Iterator[bytes]], name: str
) -> None:
    world.publish(2)
    world.mirror.instead[name] = failure
    with pytest.raises(LinkError):
        world.pull(base(2))
    assert world.node.fetch(base(1)) == content(1)
    world.mirror.instead.clear()
    assert world.pull(base(2)) == content(2)


def test_nothing_can_be_fetched_before_the_first_refresh(world: World) -> None:
    with pytest.raises(LinkError, match="no metadata was verified yet"):
        world.restarted_node().fetch(base(1))


def test_what_is_not_signed_is_none(world: World) -> None:
    (world.repository.folder / "targets/rollout/loose.json").write_bytes(b"{}")
    assert world.pull("rollout/loose.json") is None
    assert world.node.fetch("anything/else") is None


def test_a_thief_of_the_releases_key_cannot_plan_a_rollout(world: World) -> None:
    def edit(releases: Targets) -> None:
        releases.targets["rollout/all.json"] = TargetFile.from_data("rollout/all.json", b"everybody")

    forge(world, "releases", world.keys.signers("releases"), edit)
    world.node.refresh()
    assert world.node.fetch("rollout/all.json") is None


def test_a_poll_without_news_is_two_requests_and_no_write(world: World) -> None:
    world.node.fetch(PLAN)
    world.mirror.asked.clear()
    world.store.execute("pragma query_only = on")
    assert world.pull(PLAN) == b"{}"
    assert world.mirror.asked == ["metadata/2.root.json", "metadata/timestamp.json"]


def test_a_new_view_is_trusted_only_once_its_floors_are_on_the_disk(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(seen: dict[str, int]) -> None:
        raise OSError("disk full")

    world.publish(2)
    monkeypatch.setattr(world.floors, "raise_to", full)
    with pytest.raises(OSError, match="disk full"):
        world.node.refresh()
    assert world.node.fetch(base(2)) is None


def test_old_metadata_stages_nothing_until_it_is_refreshed(world: World) -> None:
    world.now += timedelta(hours=25)
    with pytest.raises(ExpiredError, match="expired at 2026-12-02"):
        world.node.fetch(base(1))
    world.repository.heartbeat()
    assert world.pull(base(1)) == content(1)


def test_a_clock_that_was_wrong_for_a_while_does_no_harm(world: World) -> None:
    set_the_clock_ten_years_ahead(world)
    with pytest.raises(ExpiredError):
        world.node.refresh()
    world.node_clock = lambda: world.now
    world.publish(2)
    assert world.pull(base(2)) == content(2)
    assert world.floors.read()[CLOCK] == int(NOW.timestamp())


def test_a_node_in_1970_follows_fresh_metadata(world: World) -> None:
    world.node_clock = lambda: datetime(1970, 1, 2, tzinfo=UTC)
    world.publish(2)
    assert world.pull(base(2)) == content(2)


def test_a_node_that_was_away_for_a_year_catches_up(world: World) -> None:
    world.now += timedelta(days=360)
    world.repository.heartbeat()
    world.publish(2)
    node = world.restarted_node()
    node.refresh()
    assert node.fetch(base(2)) == content(2)


def replace_stolen_online_key(world: World) -> list[Signer]:
    """Root 2 names a new online key, which signs snapshot and timestamp, their versions starting again."""
    fresh: list[Signer] = [CryptoSigner.generate_ed25519()]
    new_root(world, world.keys.signers("root"), swap_online_keys(fresh[0]))
    snapshot = Metadata[Snapshot].from_bytes((world.old / "metadata/4.snapshot.json").read_bytes()).signed
    meta = sign(world.path("snapshot", 4), snapshot, fresh)
    timestamp = Metadata[Timestamp].from_bytes((world.old / "metadata/timestamp.json").read_bytes()).signed
    timestamp.snapshot_meta = meta
    sign(world.path("timestamp"), timestamp, fresh)
    return fresh


@pytest.mark.parametrize("cache", [pytest.param(True, id="with its cache"), pytest.param(False, id="without cache")])
def test_a_fleet_recovers_when_a_thief_signed_the_highest_versions(world: World, cache: bool) -> None:
    timestamp = Metadata[Timestamp].from_bytes(world.path("timestamp").read_bytes()).signed
    timestamp.version = 2**70
    sign(world.path("timestamp"), timestamp, world.keys.signers("timestamp"))
    world.node.refresh()
    replace_stolen_online_key(world)
    if not cache:
        world.lose_the_cache()
    node = world.restarted_node()
    node.refresh()
    assert node.fetch(base(1)) == content(1)


def test_a_revoked_key_stays_revoked_after_the_cache_is_lost(world: World) -> None:
    replace_stolen_online_key(world)
    world.node.refresh()
    world.lose_the_cache()
    world.serve_the_old_repository()  # root 1, and metadata signed with the revoked key
    plain = Updater(str(world.folder / "plain"), "file:///metadata/", fetcher=world.mirror, bootstrap=world.root)
    installer._trusted(plain).reference_time = NOW
    plain.refresh()  # python-tuf alone is taken in
    with pytest.raises(DowngradeError, match="root: have seen v2, got v1"):
        world.restarted_node().refresh()


def test_python_tuf_still_judges_expiry_by_the_time_we_give_it(world: World) -> None:
    updater = Updater(str(world.folder / "other"), "file:///metadata/", fetcher=world.mirror, bootstrap=world.root)
    assert isinstance(installer._trusted(updater).reference_time, datetime)
    set_the_clock_ten_years_ahead(world)
    with pytest.raises(ExpiredError):
        world.node.refresh()


@pytest.mark.parametrize(
    ("url", "code"),
    [
        pytest.param("file:///../secret", 403, id="upwards"),
        pytest.param("file:///%2e%2e/secret", 403, id="upwards, encoded"),
        pytest.param("file:///metadata/../../secret", 403, id="down and up"),
        pytest.param("file:///link", 403, id="a link to a file outside"),
        pytest.param("file:///metadata/linked/secret", 403, id="through a link to a folder outside"),
        pytest.param("file:////etc/hostname", 404, id="absolute"),
        pytest.param("file:///metadata", 404, id="a folder"),
        pytest.param("file:///pipe", 404, id="a pipe"),
        pytest.param("file:///missing", 404, id="missing"),
    ],
)
def test_a_stick_gives_only_the_files_that_are_on_it(tmp_path: Path, url: str, code: int) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    stick = tmp_path / "stick"
    (stick / "metadata").mkdir(parents=True)
    (stick / "link").symlink_to(tmp_path / "secret")
    (stick / "metadata/linked").symlink_to(tmp_path)
    os.mkfifo(stick / "pipe")
    with pytest.raises(DownloadHTTPError) as refused:
        FolderFetcher(stick).download_bytes(url, 100)
    assert refused.value.status_code == code


def test_a_stick_may_itself_be_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "stick").mkdir()
    (tmp_path / "stick/file").write_bytes(b"x")
    (tmp_path / "mount").symlink_to(tmp_path / "stick")
    assert FolderFetcher(tmp_path / "mount").download_bytes("file:///file", 1) == b"x"
