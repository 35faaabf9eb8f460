"""Signs bases, releases and rollout plans into a TUF repository that any mirror or USB stick can carry."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    T,
    TargetFile,
    Targets,
    Timestamp,
)

from fleet import durable
from fleet.errors import TamperedError, UsageError
from fleet.trust.keys import Signers

LIFETIME = {
    "root": timedelta(days=365),
    "targets": timedelta(days=365),
    "releases": timedelta(days=14),
    "rollout": timedelta(days=7),
    "snapshot": timedelta(days=7),
    "timestamp": timedelta(hours=24),  # how long a freeze attack can stay unseen
}
PATTERNS = {"releases": ["bases/*/*", "releases/*/*", "templates/*"], "rollout": ["rollout/*"]}

# Narrower than the patterns: a number has one spelling, or 7 and 07 could be two contents of number 7; no `..`.
_NAME = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"
_PATHS = {
    "releases": re.compile(rf"(bases|releases)/[0-9]{{8}}/{_NAME}|templates/{_NAME}"),
    "rollout": re.compile(rf"rollout/{_NAME}"),
}


@dataclass(frozen=True, slots=True)
class _Published:
    """What the newest timestamp commits to. ``roles`` are targets, releases and rollout."""

    root: Root
    roles: Mapping[str, Targets]
    snapshot: Snapshot
    timestamp: Timestamp


class Repository:
    """The coordinator's half of TUF: ``folder/metadata`` and ``folder/targets``, in consistent snapshots (§6.2).

    The timestamp is written last and commits to all the rest, so that a coordinator killed at any instant leaves
    nodes with the old contents or the new. The disk is the truth: it is read, with every signature checked,
    by the first call and again after a write that failed; in between the parsed metadata is kept in memory.
    One process at a time.

    Args:
        folder: Where the repository is.
        keyring: Who signs for each role.
        clock: The time now, in UTC.
    """

    def __init__(self, folder: Path, keyring: Signers, *, clock: Callable[[], datetime]) -> None:
        self.folder = folder
        self._metadata = folder / "metadata"
        self._targets = folder / "targets"
        self._keyring = keyring
        self._clock = clock
        self._kept: _Published | None = None

    def create(self) -> None:
        """Make the root and the empty roles, or finish making them; nothing happens if they are there.

        Raises:
            UsageError: The key ring cannot sign a role.
            TamperedError: What is there is damaged, or was signed with other keys.
        """
        if self._path("timestamp", 1).exists():
            self._published()
            return
        if not self._path("root", 1).exists():  # made once: nodes are born with it
            root = self._new_root()
            self._write("root", root, root)
        start = _Published(self._read_root(), {}, Snapshot(), Timestamp())  # the first that is published is 2
        self._commit(start, {"targets": self._new_targets(), **{role: Targets() for role in PATTERNS}})

    def root_bytes(self) -> bytes:
        """The newest root: what a node is provisioned with, and starts to trust from."""
        return self._path("root", self._published().root.version).read_bytes()

    def first_root_bytes(self) -> bytes:
        """The first root: what invitations vouch for, however often the root was renewed since."""
        return self._path("root", 1).read_bytes()

    def version(self) -> int:
        """Of the snapshot: it grows with everything that is published.

        Unlike the rest, it may be asked for in any thread: it reads one file, and never what is kept in memory.
        """
        timestamp = Metadata[Timestamp].from_bytes(self._path("timestamp", 0).read_bytes())
        return timestamp.signed.snapshot_meta.version

    def publish(self, role: str, contents: Mapping[str, bytes], *, keep: int = 48) -> None:
        """Sign ``contents``, all or none; publishing the same again changes nothing, or heals what was cut short.

        Args:
            role: ``releases`` signs ``bases/N/name``, ``releases/N/name`` and ``templates/name``, with N of eight
                digits; ``rollout`` signs ``rollout/name``.
            contents: The bytes by path. A path under ``rollout/`` may be published again with other bytes.
            keep: How many base numbers stay listed; the files of older ones stay on the disk.

        Raises:
            ValueError: The role does not sign this path.
            TamperedError: The number was published with other bytes, or is older than all that are listed.
            UsageError: The key ring cannot sign the role.
        """
        if foreign := [path for path in contents if not _PATHS[role].fullmatch(path)]:
            raise ValueError(f"role {role} does not sign {foreign[0]}")
        published = self._published()
        old = published.roles[role]
        offered = {path: TargetFile.from_data(path, data, ["sha256"]) for path, data in contents.items()}
        if role != "rollout":
            _check_written_once(old.targets, offered)
        listed = _newest_bases(old.targets | offered, keep)
        if gone := offered.keys() - listed.keys():
            raise TamperedError(f"{min(gone)} is older than the {keep} newest bases: numbers only grow")
        for path, data in contents.items():
            self._store(offered[path], data)
        if listed != old.targets:
            self._commit(published, {role: Targets(old.version + 1, targets=listed)})

    def heartbeat(self) -> None:
        """Sign a fresh timestamp, and whatever else is past half of its life and ours to sign."""
        published = self._renewed_root(self._published())
        due = {
            role: Targets(signed.version + 1, targets=signed.targets, delegations=signed.delegations)
            for role, signed in published.roles.items()
            if self._is_due(role, signed)
        }
        if due or self._is_due("snapshot", published.snapshot):
            self._commit(published, due)
        else:
            self._commit_timestamp(published, published.timestamp.snapshot_meta)

    def target(self, path: str) -> bytes | None:
        """The published bytes of ``path``; None if it is not, or no longer, listed.

        Raises:
            TamperedError: The file on the disk is not what was signed.
        """
        files = [file for signed in self._published().roles.values() if (file := signed.targets.get(path))]
        if not files:
            return None
        try:
            data = (self._targets / files[0].get_prefixed_paths()[0]).read_bytes()
            files[0].verify_length_and_hashes(data)
        except (OSError, RepositoryError) as error:
            raise TamperedError(f"published file {path} is damaged: {error}") from error
        return data

    def _renewed_root(self, published: _Published) -> _Published:
        """The root's next version, if it is due: the same keys, and a later date. No node takes an expired one."""
        old = published.root
        if not self._is_due("root", old):
            return published
        self._kept = None  # as for the timestamp: the write may fail late
        root = Root(old.version + 1, keys=old.keys, roles=old.roles, consistent_snapshot=True)
        self._write("root", root, old)
        return replace(published, root=root)

    def _new_root(self) -> Root:
        root = Root(consistent_snapshot=True)
        for role in ("root", "targets", "snapshot", "timestamp"):
            for signer in self._keyring.signers(role):
                root.add_key(signer.public_key, role)
        return root

    def _new_targets(self) -> Targets:
        roles = {role: DelegatedRole(role, [], 1, True, paths) for role, paths in PATTERNS.items()}
        targets = Targets(delegations=Delegations({}, roles))
        for role in PATTERNS:
            for signer in self._keyring.signers(role):
                targets.add_key(signer.public_key, role)
        return targets

    def _published(self) -> _Published:
        if self._kept is None:
            self._kept = self._load()
        return self._kept

    def _load(self) -> _Published:
        if not self._path("timestamp", 1).exists():
            raise UsageError(f"{self.folder} holds no repository yet: create it first")
        root = self._read_root()
        timestamp = self._read("timestamp", Timestamp, root, MetaFile())
        snapshot = self._read("snapshot", Snapshot, root, timestamp.snapshot_meta)
        targets = self._read("targets", Targets, root, snapshot.meta["targets.json"])
        delegated = {role: self._read(role, Targets, targets, snapshot.meta[f"{role}.json"]) for role in PATTERNS}
        return _Published(root, {"targets": targets, **delegated}, snapshot, timestamp)

    def _read_root(self) -> Root:
        version = 1
        while self._path("root", version + 1).exists():
            version += 1
        # Checked by our own root keys: whoever can write this folder could leave a root of their own in it.
        return self._read("root", Root, self._new_root(), MetaFile(version))

    def _read(self, role: str, kind: type[T], delegator: Root | Targets, meta: MetaFile) -> T:
        """A role as it was signed. Unchecked, we would sign what somebody with access to the disk slipped in."""
        path = self._path(role, meta.version)
        try:
            data = path.read_bytes()
            meta.verify_length_and_hashes(data)
            metadata = Metadata[T].from_bytes(data)
            delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except (OSError, RepositoryError) as error:
            raise TamperedError(f"{path} was altered, or signed with other keys: {error}") from error
        if not isinstance(metadata.signed, kind):
            raise TamperedError(f"{path} is {metadata.signed.type} metadata")
        return metadata.signed

    def _commit(self, was: _Published, changed: Mapping[str, Targets]) -> None:
        """Write the changed roles, then the snapshot of all roles, then the timestamp."""
        roles = {**was.roles, **changed}
        meta = dict(was.snapshot.meta)
        for role, signed in changed.items():
            delegator = roles["targets"] if role in PATTERNS else was.root
            meta[f"{role}.json"] = self._write(role, signed, delegator)
        snapshot = Snapshot(was.snapshot.version + 1, meta=meta)
        snapshot_meta = self._write("snapshot", snapshot, was.root)
        self._commit_timestamp(replace(was, roles=roles, snapshot=snapshot), snapshot_meta)

    def _commit_timestamp(self, published: _Published, snapshot_meta: MetaFile) -> None:
        self._kept = None  # a write that fails may have reached the disk: then only the disk knows
        timestamp = Timestamp(published.timestamp.version + 1, snapshot_meta=snapshot_meta)
        self._write("timestamp", timestamp, published.root)
        self._kept = replace(published, timestamp=timestamp)

    def _write(self, role: str, signed: T, delegator: Root | Targets) -> MetaFile:
        signed.expires = self._clock() + LIFETIME[role]
        metadata = Metadata(signed)
        payload = metadata.signed_bytes
        for signer in self._keyring.signers(role):
            signature = signer.sign(payload)
            metadata.signatures[signature.keyid] = signature
        try:  # nothing is published that nodes would refuse
            delegator.verify_delegate(role, payload, metadata.signatures)
        except UnsignedMetadataError as error:
            raise UsageError(f"the keys at hand cannot sign this repository's {role}: {error}") from error
        data = metadata.to_bytes()
        durable.write(self._path(role, signed.version), data)
        return MetaFile.from_data(signed.version, data, ["sha256"])

    def _store(self, file: TargetFile, data: bytes) -> None:
        path = self._targets / file.get_prefixed_paths()[0]
        if not path.is_file() or path.read_bytes() != data:
            durable.write(path, data)

    def _path(self, role: str, version: int) -> Path:
        return self._metadata / ("timestamp.json" if role == "timestamp" else f"{version}.{role}.json")

    def _is_due(self, role: str, signed: Signed) -> bool:
        late = signed.expires - self._clock() < LIFETIME[role] / 2
        return late and bool(self._keyring.signers(role))


def _check_written_once(old: Mapping[str, TargetFile], offered: Mapping[str, TargetFile]) -> None:
    for path, file in offered.items():
        if path in old and old[path].hashes != file.hashes:
            raise TamperedError(f"{path} is published with other bytes already: a number is written once")


def _newest_bases(files: Mapping[str, TargetFile], keep: int) -> dict[str, TargetFile]:
    numbers = sorted({path.split("/")[1] for path in files if path.startswith("bases/")})
    dropped = set(numbers[:-keep])
    return {
        path: file for path, file in files.items() if not (path.startswith("bases/") and path.split("/")[1] in dropped)
    }
