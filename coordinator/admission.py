"""May this reply be counted? Every check comes before any strategy; a bad reply is dropped, with one word why."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from coordinator.round import Round
from fleet.errors import RefusedError, SignatureError
from fleet.messages import CODEC, Report, ReportInstruction, Update, decode, update_key
from fleet.signing import Sealed, claimed, sha256, unseal
from fleet.weights import Flat

# An honest node draws noise beyond this many standard deviations once in 1e15 reports.
NOISE_TAIL = 8

Signed = TypeVar("Signed", Update, Report)


@dataclass(frozen=True, slots=True)
class Member:
    """An enrolled node: its key, whether it was revoked, and the highest ledger number of its updates."""

    name: str
    key: Ed25519PublicKey
    revoked: bool
    ledger_seq: int


Find = Callable[[str], Member | None]


@dataclass(frozen=True, slots=True)
class Rules:
    """What an update must fit: task, size of the delta, longest norm of an honest one, staleness, known bases."""

    task: str
    size: int
    max_norm: float
    max_staleness: int
    bases: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Admitted:
    """A checked update with its delta, shape ``(size,)`` float32, and the delta's Euclidean norm."""

    update: Update
    delta: Flat
    norm: float


def admit(sealed: Sealed, payload: bytes, *, codec: str, member: Find, round_: Round, rules: Rules) -> Admitted:
    """The update, if it may be counted in ``round_``.

    Raises:
        RefusedError: With the code of the first check that failed, cheapest checks first.
    """
    _require(len(payload) <= 4 * rules.size, "oversized", f"{len(payload)} bytes, at most {4 * rules.size}")
    update, author = _opened(Update, sealed, member)
    _require(update.task == rules.task, "task", f"for task {update.task!r}")
    _require(update.round == round_.number, "round", f"for round {update.round}, open is {round_.number}")
    _require(rules.bases.get(update.base) == update.base_digest, "base", f"base {update.base} is not ours")
    age = round_.base - update.base
    _require(0 <= age <= rules.max_staleness, "stale", f"learned {age} bases ago, at most {rules.max_staleness}")
    key = update_key(update.node, update.task, update.round, update.base_digest)
    _require(update.key == key, "key", "the idempotency key is not the hash of its fields")
    _require(update.ledger_seq >= author.ledger_seq, "ledger", "the node's ledger went back")
    _require(update.spent_mu2 > 0, "ledger", "nothing was charged")
    _require(update.codec == codec == CODEC, "codec", f"encoded as {codec!r}")
    _require(sha256(payload) == update.payload_digest, "payload", "the delta is not the one that was signed")
    delta = decode(payload, rules.size)
    norm = float(np.linalg.norm(delta.astype(np.float64)))
    _require(norm <= rules.max_norm, "norm", f"norm {norm:.3g}, an honest one has at most {rules.max_norm:.3g}")
    return Admitted(update, delta, norm)


def admit_report(sealed: Sealed, *, member: Find, instruction: ReportInstruction, noise_std: float) -> Report:
    """The report, if it answers ``instruction`` with counts that its windows and their noise can give.

    Raises:
        RefusedError: With the code of the first check that failed.
    """
    report, _ = _opened(Report, sealed, member)
    asked = (instruction.task, instruction.release, instruction.watch, instruction.quota)
    _require((report.task, report.release, report.watch, report.quota) == asked, "question", "answers another question")
    slack = math.ceil(NOISE_TAIL * noise_std)
    possible = all(-slack <= count <= report.quota + slack for count in (report.won, report.lost))
    possible = possible and abs(report.won - report.lost) <= report.quota + slack
    _require(possible, "counts", f"{report.won} won and {report.lost} lost of {report.quota} windows")
    return report


def _opened(kind: type[Signed], sealed: Sealed, find: Find) -> tuple[Signed, Member]:
    """The signed fields and their author, whom the fields name and the signature proves."""
    try:
        name = claimed(sealed, "node")
        member = find(name)
        if member is None:
            raise RefusedError("unknown-node", f"no node {name!r} is enrolled")
        _require(not member.revoked, "revoked", f"{name} was revoked")
        return kind.of(unseal(kind.PURPOSE, sealed, member.key)), member
    except SignatureError as error:
        raise RefusedError("signature", str(error)) from error


def _require(holds: bool, code: str, message: str) -> None:
    if not holds:
        raise RefusedError(code, message)
