"""What travels between coordinator and node: instructions down, updates and reports up."""

import dataclasses
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from fleet.errors import ExpiredError, RefusedError, SignatureError
from fleet.signing import Sealed, canonical, seal, sha256, unseal
from fleet.weights import Flat

if TYPE_CHECKING:  # a node that only answers has nothing to sign, and 7 MB less to hold
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

CODEC = "fleet.f32.v1"


class Watch(StrEnum):
    """During which stage a report's windows were compared."""

    SHADOW = "shadow"
    PROBATION = "probation"


@dataclass(frozen=True, slots=True)
class Fields:
    """A value that is signed as a flat JSON object."""

    def fields(self) -> dict[str, Any]:
        return {field.name: _written(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        try:
            return cls(**{field.name: _read(field.type, fields[field.name]) for field in dataclasses.fields(cls)})
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise SignatureError(f"{cls.__name__.lower()}: field {error} is missing or wrong") from error


@dataclass(frozen=True, slots=True)
class Instruction(Fields):
    """The coordinator's wish. A node obeys nothing unsigned: another node can forge Flower's own routing."""

    task: str
    expires: datetime

    PURPOSE: ClassVar[str]

    def sealed(self, key: "Ed25519PrivateKey") -> Sealed:
        return seal(self.PURPOSE, self.fields(), key)

    @classmethod
    def verified(cls, sealed: Sealed, key: "Ed25519PublicKey", *, now: datetime) -> Self:
        """The instruction, if the holder of ``key`` signed it and it has not expired.

        Raises:
            SignatureError: Not signed by the pinned coordinator.
            ExpiredError: Signed, but past its date.
        """
        instruction = cls.of(unseal(cls.PURPOSE, sealed, key))
        if instruction.expires <= now:
            raise ExpiredError(f"{cls.PURPOSE} instruction expired on {instruction.expires:%Y-%m-%d %H:%M}")
        return instruction


@dataclass(frozen=True, slots=True)
class UpdateInstruction(Instruction):
    """Give an update for ``round``; the newest base to learn from is ``base``."""

    round: int
    base: int
    base_digest: str

    PURPOSE: ClassVar[str] = "update-instruction"


@dataclass(frozen=True, slots=True)
class ReportInstruction(Instruction):
    """Say what live windows tell of ``release``; ``quota`` windows make one report."""

    release: int
    watch: Watch
    quota: int

    PURPOSE: ClassVar[str] = "report-instruction"


def update_key(node: str, task: str, round_: int, base_digest: str) -> str:
    """H(node, task, round, base digest): the name under which an update is counted at most once."""
    return sha256(canonical([node, task, round_, base_digest]))


@dataclass(frozen=True, slots=True)
class Update(Fields):
    """What a node sends up: no example count, no loss, no accuracy.

    ``trained := base + decode(delta)``. ``payload_digest`` ties the signed fields to the delta's bytes.
    """

    node: str
    task: str
    round: int
    base: int
    base_digest: str
    key: str
    codec: str
    payload_digest: str
    spent_mu2: int
    ledger_seq: int
    ledger_head: str

    PURPOSE: ClassVar[str] = "update"

    def sealed(self, key: "Ed25519PrivateKey") -> Sealed:
        return seal(self.PURPOSE, self.fields(), key)


@dataclass(frozen=True, slots=True)
class Report(Fields):
    """Noisy paired counts over ``quota`` live windows: ``won`` old wrong, new right; ``lost`` the reverse."""

    node: str
    task: str
    release: int
    watch: Watch
    quota: int
    won: int
    lost: int
    ledger_seq: int
    ledger_head: str

    PURPOSE: ClassVar[str] = "report"

    def sealed(self, key: "Ed25519PrivateKey") -> Sealed:
        return seal(self.PURPOSE, self.fields(), key)


def encode(delta: Flat) -> bytes:
    """Little-endian float32."""
    return delta.astype("<f4").tobytes()


def decode(payload: bytes, size: int) -> Flat:
    """The delta, shape ``(size,)``, float32.

    Raises:
        RefusedError: ``layout`` for another length, ``not-finite`` for NaN or infinity.
    """
    if len(payload) != 4 * size:
        raise RefusedError("layout", f"delta of {len(payload)} bytes, the layout needs {4 * size}")
    delta = np.frombuffer(payload, dtype="<f4").astype(np.float32)
    if not np.isfinite(delta).all():
        raise RefusedError("not-finite", "the delta has NaN or infinite values")
    return delta


def _written(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _read(kind: Any, value: Any) -> Any:
    """``value`` as the declared type, strictly: a number is no text and a bool is no number."""
    if kind is datetime:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            raise ValueError("a time without zone")
        return moment.astimezone(UTC)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind(value)
    if type(value) is not kind:
        raise ValueError(f"{value!r} is no {kind.__name__}")
    if kind is int and abs(value) >= 2**63:
        raise ValueError("a number over 63 bits")
    return value
