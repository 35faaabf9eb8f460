"""Artifacts on disk by their digest, and the one pointer that says which of them answers."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from fleet import durable
from fleet.errors import TamperedError
from fleet.release import Release
from fleet.signing import canonical, sha256

LOCK = "slots.lock"


@dataclass(frozen=True, slots=True)
class Pointer:
    """Which release answers, and which would after a rollback."""

    active: int
    previous: int | None


class Slots:
    """A node's releases: one folder each, content checked at every load, switched by one atomic file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def held(self) -> Iterator[None]:
        """While releases are moved and the pointer follows: a node's process and the child that pulls take turns."""
        durable.make_folder(self._folder)
        with durable.held(self._folder / LOCK, wait=True):
            yield

    def store(self, release: Release, artifact: bytes, golden: bytes) -> None:
        """Write a release beside the others. Not active, and harmless if interrupted."""
        folder = self._slot(release.number)
        files = {"artifact.onnx": artifact, "golden.bin": golden, "manifest.json": release.to_bytes()}
        for name, data in files.items():
            durable.write(folder / name, data)
        durable.write(folder / "digests.json", canonical({name: sha256(data) for name, data in files.items()}))

    def release(self, number: int) -> Release:
        """The manifest of a stored release.

        Raises:
            TamperedError: It is missing or damaged.
        """
        return Release.from_bytes(self._read(number, "manifest.json"))

    def artifact(self, number: int) -> bytes:
        """The artifact of a stored release, hashed again on the way out.

        Raises:
            TamperedError: The bytes are not those that were signed.
        """
        data = self._read(number, "artifact.onnx")
        if sha256(data) != self.release(number).artifact:
            raise TamperedError(f"slot {number}: the artifact on disk is not the one that was signed")
        return data

    def golden(self, number: int) -> bytes:
        """The golden inputs of a stored release, little-endian float32.

        Raises:
            TamperedError: They are missing or damaged.
        """
        return self._read(number, "golden.bin")

    def is_whole(self, number: int) -> bool:
        """Whether every byte of a stored release is as it was stored."""
        try:
            return bool(self.artifact(number)) and bool(self.golden(number))
        except TamperedError:
            return False

    def path(self, number: int) -> Path:
        """The artifact's file, for a child process to open."""
        return self._slot(number) / "artifact.onnx"

    def pointer(self) -> Pointer | None:
        """What answers now; None before the first release."""
        try:
            return Pointer(**json.loads((self._folder / "active.json").read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise TamperedError(f"{self._folder / 'active.json'} cannot be read: {error}") from error

    def point(self, pointer: Pointer) -> None:
        """Switch, atomically: after a power cut the old pointer holds or the new one. A damaged one is replaced."""
        path, data = self._folder / "active.json", canonical(asdict(pointer))
        if not path.is_file() or path.read_bytes() != data:
            durable.write(path, data)

    def clear(self, numbers: Iterable[int]) -> None:
        """Remove the artifacts of releases that nothing can return to."""
        for folder in map(self._slot, numbers):
            if folder.exists():
                from shutil import rmtree  # with all that it can unpack, it is half a megabyte

                rmtree(folder, ignore_errors=True)  # another process of this node may be at it too

    def _slot(self, number: int) -> Path:
        return self._folder / f"{number:08d}"

    def _read(self, number: int, name: str) -> bytes:
        folder = self._slot(number)
        try:
            data = (folder / name).read_bytes()
            whole = sha256(data) == json.loads((folder / "digests.json").read_bytes())[name]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise TamperedError(f"slot {number}: {name} cannot be read: {error}") from error
        if not whole:
            raise TamperedError(f"slot {number}: {name} is not what was stored")
        return data
