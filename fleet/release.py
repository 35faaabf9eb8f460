"""Bases, releases and rollouts as the coordinator signs them and nodes read them."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from fleet.errors import SignatureError
from fleet.messages import Watch
from fleet.signing import canonical, sha256

ROLLOUT_PATH = "rollout/stable.json"


@dataclass(frozen=True, slots=True)
class _Manifest:
    """A flat value that is published as a signed JSON target."""

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical(asdict(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The inverse of ``to_bytes``.

        Raises:
            SignatureError: Signed, but not a manifest that this version reads.
        """
        try:
            manifest = cls(**json.loads(data))
            for field in fields(cls):
                _check_type(field.name, field.type, getattr(manifest, field.name))
        except (ValueError, TypeError, RecursionError) as error:
            raise SignatureError(f"{cls.__name__.lower()} manifest cannot be read: {error}") from error
        return manifest


@dataclass(frozen=True, slots=True)
class Base(_Manifest):
    """Signed int8 weights of a round: nodes train from them and do not serve them.

    ``payload`` is the SHA-256 of the weights' bytes, ``template`` names the graph that they are patched into.
    """

    task: str
    number: int
    round: int
    payload: str
    template: str


@dataclass(frozen=True, slots=True)
class Release(_Manifest):
    """A base offered for serving. Numbers only grow; going back is a new number that points at old weights.

    Attributes:
        artifact: SHA-256 of the whole ONNX file that a node serves.
        golden: SHA-256 of the outputs on the signed golden inputs, under ``runtime``.
        withdraws: The release this one takes back, or 0; its weights were served before, so it skips shadow.
    """

    task: str
    number: int
    base: int
    payload: str
    template: str
    artifact: str
    golden: str
    runtime: str
    shadow_windows: int
    probation_windows: int
    withdraws: int = 0

    def quota(self, watch: Watch) -> int:
        """Labelled windows that a node's report of this stage takes."""
        return self.shadow_windows if watch is Watch.SHADOW else self.probation_windows


@dataclass(frozen=True, slots=True)
class Rollout(_Manifest):
    """Who may serve the newest release now: nodes whose hash is at most ``threshold`` (hex; empty for nobody).

    ``serving`` is the newest release that everybody may serve: what a new node begins with.
    """

    release: int
    salt: str
    threshold: str
    halted: bool = False
    serving: int = 0

    def admits(self, release: int, node: str) -> bool:
        """Whether ``node`` may serve ``release``: it is in an open wave, or everybody may."""
        return release == self.serving or (release == self.release and self.includes(node))

    def includes(self, node: str) -> bool:
        """Whether ``node`` is in a wave that has opened."""
        return not self.halted and wave_hash(self.salt, node) <= self.threshold


def wave_hash(salt: str, node: str) -> str:
    """Where a node stands in the order of waves; a new salt a release, or the same nodes are always canaries."""
    return sha256(f"{salt}:{node}".encode())


def wave_threshold(salt: str, roster: Iterable[str], fraction: float) -> str:
    """The k-th smallest hash of the roster, so that a 5 % wave of 20 nodes is exactly one node; "" for nobody."""
    hashes = sorted(wave_hash(salt, node) for node in roster)
    places = wave_size(len(hashes), fraction)
    return hashes[places - 1] if places > 0 else ""


def wave_size(nodes: int, fraction: float) -> int:
    """How many of a fleet's nodes are in a wave."""
    return math.ceil(fraction * nodes - 1e-9)  # 0.07 * 100 is a little more than 7 in floating point


def _check_type(name: str, kind: Any, value: Any) -> None:
    if type(value) is not kind or (kind is int and abs(value) >= 2**63):
        raise ValueError(f"{name}: {value!r} is no {kind.__name__}, or over 63 bits")


def base_path(number: int, name: str) -> str:
    """Where a base's ``manifest.json`` or ``weights.bin`` is published."""
    return f"bases/{number:08d}/{name}"


def release_path(number: int, name: str) -> str:
    """Where a release's ``manifest.json``, ``weights.bin`` or ``golden.bin`` is published."""
    return f"releases/{number:08d}/{name}"


def template_path(digest: str) -> str:
    """Where a template is published."""
    return f"templates/{digest}.bin"
