"""The development key ring: every role's signing key in one folder, as files that only their owner can read."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, Signer

from fleet import durable
from fleet.errors import TamperedError, UsageError

KEY_OF = {
    "root": "root",
    "targets": "targets",
    "releases": "releases",
    "rollout": "rollout",
    "snapshot": "online",  # one key for both, as in PEP 458: whoever steals the one on this host has the other too
    "timestamp": "online",
}


class Signers(Protocol):
    """Who signs for a role. A ceremony with offline keys, or a KMS, fits here as well as files do."""

    def signers(self, role: str) -> list[Signer]:
        """The signers of ``role`` that are at hand; none if it is signed elsewhere."""


@dataclass(frozen=True)
class Keyring:
    """Ed25519 keys of all six roles, one signature each: for development, where one person is everybody.

    One process uses a folder at a time.
    """

    folder: Path
    _signers: dict[str, CryptoSigner] = field(repr=False)

    @classmethod
    def create(cls, folder: Path) -> "Keyring":
        """Load the keys in ``folder`` and make those that are missing; a key that is there is never replaced.

        Raises:
            UsageError: A key file cannot be read or written.
            TamperedError: A key file does not hold an Ed25519 private key.
        """
        for name in sorted(set(KEY_OF.values())):
            path = _path(folder, name)
            try:
                if not path.exists():
                    durable.write(path, CryptoSigner.generate_ed25519().private_bytes, mode=0o600)
            except OSError as error:
                raise UsageError(f"key {path} cannot be written: {error.strerror}") from error
        return cls.load(folder)

    @classmethod
    def load(cls, folder: Path) -> "Keyring":
        """Load the keys in ``folder``.

        Raises:
            UsageError: A key file is missing or cannot be read.
            TamperedError: A key file does not hold an Ed25519 private key.
        """
        return cls(folder, {name: _load(_path(folder, name)) for name in sorted(set(KEY_OF.values()))})

    def signers(self, role: str) -> list[Signer]:
        """The signers of one of the six TUF roles.

        Raises:
            ValueError: There is no such role.
        """
        if role not in KEY_OF:
            raise ValueError(f"role {role!r}: the roles are {', '.join(KEY_OF)}")
        return [self._signers[KEY_OF[role]]]


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.pem"


def _load(path: Path) -> CryptoSigner:
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise UsageError(f"key {path} cannot be read: {error.strerror}") from error
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TamperedError(f"key {path} is damaged: restore it from a backup") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise TamperedError(f"key {path} is no Ed25519 key: restore it from a backup")
    return CryptoSigner(key)
