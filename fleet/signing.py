"""Ed25519 signatures over canonical JSON: who said this, and for what purpose."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a node that only answers has nothing to sign, and 7 MB less to hold
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


from fleet.errors import SignatureError

PROTOCOL = 1
MAX_BODY_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class Sealed:
    """The exact bytes that were signed, and the signature."""

    body: bytes
    signature: bytes

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Sealed":
        """What anybody's record holds in ``body`` and ``signature``; empty, and so never genuine, if it does not."""
        body, signature = record.get("body"), record.get("signature")
        return cls(body if isinstance(body, bytes) else b"", signature if isinstance(signature, bytes) else b"")


def canonical(value: Any) -> bytes:
    """One spelling of a JSON value: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def seal(purpose: str, fields: Mapping[str, Any], key: "Ed25519PrivateKey") -> Sealed:
    """Sign ``fields`` for one purpose; a signature for one purpose is worthless for another."""
    body = canonical({**fields, "v": PROTOCOL})
    return Sealed(body, key.sign(_message(purpose, body)))


def unseal(purpose: str, sealed: Sealed, key: "Ed25519PublicKey") -> dict[str, Any]:
    """The fields that the holder of ``key`` signed for ``purpose``.

    Raises:
        SignatureError: Signed by someone else, for something else, altered, or of another protocol.
    """
    from cryptography.exceptions import InvalidSignature

    _check_length(purpose, sealed.body)
    try:
        key.verify(sealed.signature, _message(purpose, sealed.body))
    except InvalidSignature as error:
        raise SignatureError(f"{purpose}: the signature does not fit") from error
    fields = _parsed(purpose, sealed.body)
    if fields.pop("v", None) != PROTOCOL:
        raise SignatureError(f"{purpose}: another protocol version than {PROTOCOL}")
    return fields


def claimed(sealed: Sealed, field: str) -> str:
    """What an unverified body says in ``field``: only good for choosing the key to verify it with.

    Raises:
        SignatureError: The body is too long, no JSON object, or has no such text.
    """
    _check_length("message", sealed.body)
    value = _parsed("message", sealed.body).get(field)
    if not isinstance(value, str):
        raise SignatureError(f"message: no {field}")
    return value


def sha256(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def _message(purpose: str, body: bytes) -> bytes:
    return b"edgefleet/" + purpose.encode("ascii") + b"\0" + body


def _check_length(purpose: str, body: bytes) -> None:
    if len(body) > MAX_BODY_BYTES:
        raise SignatureError(f"{purpose}: {len(body)} bytes, at most {MAX_BODY_BYTES} are read")


def _parsed(purpose: str, body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise SignatureError(f"{purpose}: the body is no JSON") from error
    if not isinstance(fields, dict):
        raise SignatureError(f"{purpose}: the body is no object")
    return fields
