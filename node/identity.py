"""Who a node is and whom it trusts: pinned once, when it is provisioned."""

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fleet.errors import SettingsError, TamperedError, TaskError, TrustError
from fleet.privacy.gaussian import Budget
from fleet.settings import Settings
from fleet.signing import canonical
from fleet.task import Task
from node.store import open_store, transaction

if TYPE_CHECKING:  # a node that only answers neither signs nor verifies, and has 7 MB less to hold
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Identity:
    """A node's name, its own key, and what it was born trusting.

    Attributes:
        secret: The 32 bytes of the node's Ed25519 key.
        pinned: The 32 bytes of the Ed25519 key that instructions must be signed with.
        root: The trusted root metadata of The Update Framework.
        settings: The node's own privacy settings: no coordinator can weaken them.
        task: What the task takes and gives, so that the node answers without the task's code.
        flower_id: The node's number in Flower; 0 where Flower hands one out at every start.
    """

    name: str
    secret: bytes
    pinned: bytes
    root: bytes
    settings: Settings
    task: Task
    flower_id: int = 0

    def __repr__(self) -> str:
        return f"Identity(name={self.name!r})"

    @property
    def key(self) -> "Ed25519PrivateKey":
        """What the node signs with."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Ed25519PrivateKey.from_private_bytes(self.secret)

    @property
    def coordinator(self) -> "Ed25519PublicKey":
        """What instructions are verified with."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        return Ed25519PublicKey.from_public_bytes(self.pinned)

    @property
    def budget(self) -> Budget:
        """What a partition of the node's data may cost."""
        return self.settings.privacy.budget(self.task.unit.group)

    def save(self, store: sqlite3.Connection) -> None:
        """Pin this identity, once.

        Raises:
            TamperedError: The store has an identity already.
        """
        rows = {
            "name": self.name.encode(),
            "key": self.secret,
            "coordinator": self.pinned,
            "root": self.root,
            "settings": canonical(self.settings.to_json()),
            "task": canonical(self.task.spec()),
            "flower_id": str(self.flower_id).encode(),
        }
        with transaction(store):
            if store.execute("select 1 from identity").fetchone():
                raise TamperedError(f"{self.name}: this store has an identity already")
            store.executemany("insert into identity values (?, ?)", rows.items())

    @classmethod
    def load(cls, store: sqlite3.Connection) -> "Identity | None":
        """The pinned identity; None if the node was never provisioned.

        Raises:
            TamperedError: Parts of it are missing.
        """
        rows: dict[str, bytes] = dict(store.execute("select name, value from identity").fetchall())
        if not rows:
            return None
        try:
            return cls(
                name=rows["name"].decode(),
                secret=_key(rows["key"]),
                pinned=_key(rows["coordinator"]),
                root=rows["root"],
                settings=Settings.from_json(json.loads(rows["settings"])),
                task=Task.of_spec(json.loads(rows["task"])),
                flower_id=int(rows["flower_id"]),
            )
        except (KeyError, ValueError, SettingsError, TaskError) as error:
            raise TamperedError(f"identity: {error} is missing or wrong") from error


def read_identity(folder: Path) -> Identity | None:
    """The identity pinned in a node's folder; None if the node was never provisioned.

    Raises:
        TamperedError: Parts of it are missing.
    """
    with closing(open_store(folder / "node.db")) as store:
        return Identity.load(store)


def require_node(folder: Path) -> None:
    """Look whether a folder is a node's, before its store would be made.

    Raises:
        TrustError: It is not.
    """
    if not (folder / "node.db").exists():
        raise TrustError(f"{folder} is no node of a fleet yet: 'edgefleet node enrol INVITATION' makes it one")


def _key(stored: bytes) -> bytes:
    if len(stored) != KEY_BYTES:
        raise ValueError("a key")
    return stored
