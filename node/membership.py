"""Where a node's coordinator is, and the keys with which it joined: pinned before the first word is said to it."""

import sqlite3
from dataclasses import dataclass, fields

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from fleet.errors import TamperedError
from node.store import transaction

_SCHEMA = "create table if not exists membership (name text primary key, value blob not null) strict"


@dataclass(frozen=True, slots=True)
class Membership:
    """The way to one coordinator, and to nobody else.

    Attributes:
        url: The coordinator's public listener.
        authority: PEM of the only authority that may vouch for it; empty for the system's, or where there is no TLS.
        key: What the node signs with.
        flower_key: EC P-384, for Flower's node authentication.
        reference: Where the task's code is on this device, as ``fleet.task.load`` takes it; empty if it cannot learn.
    """

    url: str
    authority: str
    key: Ed25519PrivateKey
    flower_key: ec.EllipticCurvePrivateKey
    reference: str = ""

    def __repr__(self) -> str:
        return f"Membership(url={self.url!r})"

    def save(self, store: sqlite3.Connection) -> None:
        """Pin this membership; before the node is enrolled it may be pinned anew."""
        store.execute(_SCHEMA)
        rows = {
            "url": self.url.encode(),
            "authority": self.authority.encode(),
            "key": self.key.private_bytes_raw(),
            "flower_key": self.flower_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
            "reference": self.reference.encode(),
        }
        with transaction(store):
            store.executemany("insert or replace into membership values (?, ?)", rows.items())

    @classmethod
    def load(cls, store: sqlite3.Connection) -> "Membership | None":
        """The pinned membership; None if the node never asked to join.

        Raises:
            TamperedError: Parts of it are missing.
        """
        store.execute(_SCHEMA)
        rows: dict[str, bytes] = dict(store.execute("select name, value from membership").fetchall())
        if not rows:
            return None
        try:
            flower_key = load_der_private_key(rows["flower_key"], None)
            if not isinstance(flower_key, ec.EllipticCurvePrivateKey) or rows.keys() != {f.name for f in fields(cls)}:
                raise ValueError("flower_key")
            return cls(
                url=rows["url"].decode(),
                authority=rows["authority"].decode(),
                key=Ed25519PrivateKey.from_private_bytes(rows["key"]),
                flower_key=flower_key,
                reference=rows["reference"].decode(),
            )
        except (KeyError, ValueError) as error:
            raise TamperedError(f"membership: {error} is missing or wrong") from error
