"""How a node joins: an invitation that a person carries over, a request that proves its keys, and a welcome."""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from fleet.errors import SettingsError, SignatureError, TaskError, TrustError, UsageError
from fleet.messages import Fields
from fleet.settings import Settings
from fleet.signing import Sealed, canonical, claimed, seal, sha256, unseal
from fleet.task import Task

PREFIX = "edgefleet1."
MAX_INVITATION = 2048
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")  # one path component, one label of a host: no tricks
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PROOF = b"edgefleet/flower-key\0"


def check_name(name: str) -> str:
    """The name, if a node may bear it.

    Raises:
        UsageError: It may not.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"name {name[:80]!r}: use 1 to 63 letters, digits, '-' and '_', a letter or digit first")
    return name


@dataclass(frozen=True, slots=True)
class Invitation:
    """One node's way to its coordinator, and what it may believe there. ``secret`` is good for one enrolment.

    Attributes:
        url: Where the coordinator's public listener is, such as ``https://fleet.example:8443``.
        name: What the node is called in the fleet.
        root: SHA-256 in hex of the first root metadata of the coordinator's repository.
        key: SHA-256 in hex of the 32 bytes of the key that instructions are signed with.
        authority: SHA-256 in hex of the DER certificate that the server's certificate chains to; empty where the
            system's authorities vouch for it, or where there is no TLS.
    """

    url: str
    name: str
    secret: str
    root: str
    key: str
    authority: str = ""

    def __repr__(self) -> str:
        return f"Invitation(url={self.url!r}, name={self.name!r})"

    def __str__(self) -> str:
        """One line to copy: whoever has it first is the node."""
        return PREFIX + _plain(base64.urlsafe_b64encode(canonical(asdict(self)))).rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The invitation that was printed.

        Raises:
            UsageError: It is incomplete or is no invitation.
        """
        text = text.strip()
        try:
            if not text.startswith(PREFIX) or len(text) > MAX_INVITATION:
                raise ValueError(f"it does not begin with {PREFIX}" if len(text) <= MAX_INVITATION else "too long")
            body = text.removeprefix(PREFIX)
            data = json.loads(base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True))
            return cls._of(data)
        except (ValueError, RecursionError) as error:  # binascii.Error and JSONDecodeError are ValueErrors
            raise UsageError(f"this is no whole invitation ({error}): copy all of what 'invite' printed") from error

    @classmethod
    def _of(cls, data: Any) -> Self:
        names = {field.name for field in fields(cls)}
        if not isinstance(data, dict) or set(data) != names or not all(isinstance(v, str) for v in data.values()):
            raise ValueError("its fields are not those of an invitation")
        url = urlsplit(data["url"])
        if url.scheme not in {"http", "https"} or not url.hostname or url.port == 0:  # other ports raise ValueError
            raise ValueError("its address is no http or https URL")
        digests = (data["root"], data["key"], *([data["authority"]] if data["authority"] else []))
        if not NAME.fullmatch(data["name"]) or not data["secret"] or not all(map(_DIGEST.fullmatch, digests)):
            raise ValueError("its name or its fingerprints are damaged")
        return cls(**data)


@dataclass(frozen=True, slots=True)
class Enrolment(Fields):
    """What a new node asks for, sealed with the key that it made: ``public_key`` in base64, ``flower_key`` in PEM.

    ``flower_proof`` is the same for the key of Flower's node authentication: an ECDSA signature over the public key,
    in base64.
    """

    secret: str
    name: str
    public_key: str
    flower_key: str
    flower_proof: str
    time: datetime

    PURPOSE: ClassVar[str] = "enrolment"

    @classmethod
    def sealed(
        cls,
        invitation: Invitation,
        key: Ed25519PrivateKey,
        flower_key: ec.EllipticCurvePrivateKey,
        *,
        now: datetime,
    ) -> Sealed:
        """The request of a node that holds both keys. It may be sent again, and is answered alike."""
        public = key.public_key().public_bytes_raw()
        proof = flower_key.sign(_PROOF + public, ec.ECDSA(hashes.SHA256()))
        request = cls(
            secret=invitation.secret,
            name=invitation.name,
            public_key=encoded(public),
            flower_key=_plain(pem(flower_key.public_key())),
            flower_proof=encoded(proof),
            time=now,
        )
        return seal(cls.PURPOSE, request.fields(), key)

    @classmethod
    def opened(cls, sealed: Sealed) -> Self:
        """The request, if its sender holds both keys.

        Raises:
            SignatureError: It does not, or the request is malformed.
        """
        request = cls.of(unseal(cls.PURPOSE, sealed, _ed25519(claimed(sealed, "public_key"))))
        try:
            flower_key = load_pem_public_key(request.flower_key.encode("ascii"))
            if not isinstance(flower_key, ec.EllipticCurvePublicKey) or flower_key.curve.name != "secp384r1":
                raise SignatureError("enrolment: the key for Flower must be EC P-384")
            if _plain(pem(flower_key)) != request.flower_key:  # Flower compares these bytes, not the key
                raise SignatureError("enrolment: the key for Flower must be PEM as it is usually written")
            message = _PROOF + decoded(request.public_key)
            flower_key.verify(decoded(request.flower_proof), message, ec.ECDSA(hashes.SHA256()))
        except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
            raise SignatureError("enrolment: the sender does not hold the key for Flower") from error
        return request

    @property
    def key(self) -> Ed25519PublicKey:
        """The node's key."""
        return _ed25519(self.public_key)


@dataclass(frozen=True, slots=True)
class Welcome:
    """What a coordinator tells a node that it enrolled, sealed with the key that the invitation vouches for.

    Attributes:
        root: The first root metadata: trust begins here.
        instruction_key: The key that instructions are signed with.
        task: What the task takes and gives; its code is not here.
        reference: Where the coordinator has it from, as ``[task] file`` in ``fleet.toml``: for people, never loaded.
        settings: How the fleet learns; the node keeps these, and no coordinator can weaken them later.
        flower_id: The node's number in Flower.
    """

    name: str
    root: bytes
    instruction_key: Ed25519PublicKey
    task: Task
    reference: str
    settings: Settings
    flower_id: int

    PURPOSE: ClassVar[str] = "welcome"

    def to_json(self, key: Ed25519PrivateKey) -> dict[str, Any]:
        """The answer to an enrolment, sealed with the other half of ``instruction_key``; ``checked`` reads it back."""
        fields = {
            "name": self.name,
            "root": encoded(self.root),
            "task": {"spec": self.task.spec(), "reference": self.reference},
            "settings": self.settings.to_json(),
            "flower_id": self.flower_id,
        }
        sealed = seal(self.PURPOSE, fields, key)
        return {
            "instruction_key": encoded(self.instruction_key.public_bytes_raw()),
            "body": encoded(sealed.body),
            "signature": encoded(sealed.signature),
        }

    @classmethod
    def checked(cls, answer: Mapping[str, Any], invitation: Invitation) -> Self:
        """The welcome, if it comes from the coordinator that the invitation is from.

        Raises:
            TrustError: It is for somebody else, of somebody else, altered, or malformed.
        """
        try:
            key = decoded(str(answer["instruction_key"]))
            if sha256(key) != invitation.key:
                raise TrustError(f"{invitation.url} is not the coordinator that the invitation is from")
            instruction_key = Ed25519PublicKey.from_public_bytes(key)
            sealed = Sealed(decoded(str(answer["body"])), decoded(str(answer["signature"])))
            data = unseal(cls.PURPOSE, sealed, instruction_key)
            root = decoded(str(data["root"]))
            if data["name"] != invitation.name:
                raise TrustError(f"invited as {invitation.name}, welcomed as {str(data['name'])[:80]!r}")
            if sha256(root) != invitation.root:
                raise TrustError(f"{invitation.url} is not the coordinator that the invitation is from")
            return cls(
                name=invitation.name,
                root=root,
                instruction_key=instruction_key,
                task=Task.of_spec(data["task"]["spec"]),
                reference=str(data["task"]["reference"]),
                settings=Settings.from_json(data["settings"]),
                flower_id=int(data["flower_id"]),
            )
        except (KeyError, TypeError, ValueError, SettingsError, TaskError) as error:
            raise TrustError(f"{invitation.url} sent a welcome that cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class TokenRequest(Fields):
    """Sealed by an enrolled node: a nonce is good for one token, and only while ``time`` is about now."""

    node: str
    nonce: str
    time: datetime

    PURPOSE: ClassVar[str] = "token-request"

    def sealed(self, key: Ed25519PrivateKey) -> Sealed:
        """The request, signed."""
        return seal(self.PURPOSE, self.fields(), key)


def pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """A key of Flower's node authentication as Flower spells it."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def encoded(data: bytes) -> str:
    """Base64."""
    return _plain(base64.b64encode(data))


def decoded(text: str) -> bytes:
    """The bytes of strict base64.

    Raises:
        ValueError: It is none.
    """
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except binascii.Error as error:
        raise ValueError(f"no base64: {error}") from error


def _ed25519(text: str) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(decoded(text))
    except ValueError as error:
        raise SignatureError("public_key is no Ed25519 key") from error


def _plain(data: bytes) -> str:
    return data.decode("ascii")
