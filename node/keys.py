"""A node's key for Flower in files, for a stock SuperNode: our own link reads it from the node's store."""

from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from fleet import durable
from node.enrolled import enrolled

PRIVATE, PUBLIC = "flower_key", "flower_key.pub"


def write(folder: Path) -> tuple[Path, Path]:
    """Write the private key, for its owner only, and the public one, both in OpenSSH's format; where they are.

    Raises:
        TrustError: The folder was never enrolled.
    """
    with enrolled(folder) as node:
        key, private, public = node.membership.flower_key, folder / PRIVATE, folder / PUBLIC
    durable.write(private, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), mode=0o600)
    durable.write(public, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    return private, public
