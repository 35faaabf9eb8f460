"""What the tests of a node share: a store, a key, and a toy task with real artifacts."""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import nn

from coordinator.golden import golden_inputs
from coordinator.requantizer import register
from fleet.artifact import RUNTIME, golden_digest, open_session
from fleet.errors import SignatureError
from fleet.quantization import Template
from fleet.release import Release
from fleet.signing import sha256
from fleet.task import Signature, Task, Windows, layout_of
from fleet.weights import Flat
from node.store import open_store
from tests import toy_task


@pytest.fixture
def store(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = open_store(tmp_path / "node.db")
    yield connection
    connection.close()


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def build_model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.Hardtanh(), nn.Linear(4, 2))


TASK = replace(toy_task.TASK, model=build_model)


@dataclass
class Toy:
    """A point lies left or right: release by release, models that say so, and models that say the opposite."""

    task: Task = TASK
    signature: Signature = TASK.signature
    shelf: dict[int, tuple[Release, bytes, bytes]] = field(default_factory=dict)
    fetched: list[int] = field(default_factory=list)

    @cached_property
    def template(self) -> Template:
        return register(self.task, self.weights()).template

    def weights(self, *, right: bool = True, scale: float = 1.0) -> Flat:
        sign = (scale if right else -scale) * np.ones((1, 4), np.float32)
        values = {
            "0.weight": np.array([[1, 0]] * 4, np.float32),
            "0.bias": np.zeros(4, np.float32),
            "2.weight": np.concatenate([-sign, sign]),
            "2.bias": np.zeros(2, np.float32),
        }
        return layout_of(self.task.model()).flatten(values)

    def made(
        self,
        number: int,
        *,
        right: bool = True,
        withdraws: int = 0,
        like: int = 0,
        quota: int = 2,
        base: int | None = None,
    ) -> tuple[Release, bytes, bytes]:
        """A release, its artifact and its golden inputs, as the coordinator makes them; ``like`` has its weights."""
        payload = self.template.quantize(self.weights(right=right, scale=1 + (like or number) / 8))
        artifact = self.template.artifact(payload)
        golden = golden_inputs(artifact, self.signature)
        release = Release(
            task=self.task.name,
            number=number,
            base=number if base is None else base,
            payload=sha256(payload),
            template=self.template.digest,
            artifact=sha256(artifact),
            golden=golden_digest(open_session(artifact), golden),
            runtime=RUNTIME,
            shadow_windows=10,
            probation_windows=quota,
            withdraws=withdraws,
        )
        return release, artifact, golden.astype("<f4").tobytes()

    def put(self, number: int, *, golden: str = "", **what: int) -> None:
        """Put a release on the shelf; ``golden`` is a digest to sign instead of the true one."""
        release, artifact, inputs = self.made(number, **what)
        self.shelf[number] = replace(release, golden=golden or release.golden), artifact, inputs

    def manifest(self, number: int) -> Release:
        """What ``Catalog.manifest`` gives."""
        if number not in self.shelf:
            raise SignatureError(f"release {number} is not signed by the coordinator")
        return self.shelf[number][0]

    def release(self, number: int) -> tuple[Release, bytes, bytes]:
        """What ``Catalog.release`` gives."""
        self.fetched.append(number)
        if number not in self.shelf:
            raise SignatureError(f"release {number} is not signed by the coordinator")
        return self.shelf[number]

    def points(self, count: int, seed: int = 0) -> Windows:
        """Points, with the truth about them."""
        x: npt.NDArray[np.float32] = np.random.default_rng(seed).uniform(-1, 1, (count, 2)).astype(np.float32)
        x[:, 0] = np.where(np.abs(x[:, 0]) < 0.1, 0.5, x[:, 0])
        return Windows(x, (x[:, 0] > 0).astype(np.int64))


@pytest.fixture(scope="session")
def toys() -> Toy:
    """The toy task, exported once."""
    return Toy()


@pytest.fixture
def toy(toys: Toy) -> Toy:
    """The toy task with an empty shelf."""
    toys.shelf.clear()
    return toys
