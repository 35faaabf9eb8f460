"""Who a node is: pinned once, and its key told to nobody."""

import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fleet.errors import TamperedError
from fleet.settings import Settings
from fleet.task import Task
from node.identity import Identity
from node.store import open_store

PARTS = ("name", "key", "coordinator", "root", "settings", "task", "flower_id")
COORDINATOR = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()
SPEC = {
    "name": "toy",
    "signature": {
        "input": "x",
        "shape": [2],
        "low": -1.0,
        "high": 1.0,
        "classes": ["left", "right"],
        "dtype": "float32",
    },
    "unit": {"name": "a point", "group": 1},
    "training": {"learning_rate": 0.5, "examples": 10},
}
TASK = Task.of_spec(SPEC)


def identity(key: Ed25519PrivateKey, settings: Settings | None = None) -> Identity:
    return Identity(
        "n1", key.private_bytes_raw(), COORDINATOR.public_bytes_raw(), b"root metadata", settings or Settings(), TASK
    )


def raw(identity: Identity) -> tuple[object, ...]:
    coordinator = identity.coordinator.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return identity.name, identity.key.private_bytes_raw(), coordinator, identity.root, identity.settings


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(Settings(), id="defaults"),
        pytest.param(Settings().changed(privacy={"epsilon": float("inf")}), id="no privacy"),
        pytest.param(Settings().changed(release={"patience": timedelta(days=30)}), id="a month of patience"),
    ],
)
def test_an_identity_survives_a_restart(tmp_path: Path, key: Ed25519PrivateKey, settings: Settings) -> None:
    store = open_store(tmp_path / "node.db")
    identity(key, settings).save(store)
    store.close()
    store = open_store(tmp_path / "node.db")
    loaded = Identity.load(store)
    store.close()
    assert loaded is not None
    assert raw(loaded) == raw(identity(key, settings))
    assert loaded.task == TASK


def test_a_node_that_was_never_provisioned_has_no_identity(store: sqlite3.Connection) -> None:
    assert Identity.load(store) is None


def test_an_identity_is_pinned_once(store: sqlite3.Connection, key: Ed25519PrivateKey) -> None:
    identity(key).save(store)
    with pytest.raises(TamperedError, match="has an identity already"):
        Identity("thief", bytes(32), bytes(32), b"other", Settings(), TASK).save(store)
    loaded = Identity.load(store)
    assert loaded is not None
    assert raw(loaded) == raw(identity(key))


@pytest.mark.parametrize("show", [repr, str, "{}".format, lambda value: repr([value]), lambda value: f"{value!r}"])
def test_a_private_key_is_never_printed(key: Ed25519PrivateKey, show: object) -> None:
    shown = show(identity(key))  # type: ignore[operator]
    assert "n1" in shown
    for spelling in (key.private_bytes_raw().hex(), repr(key.private_bytes_raw()), "PrivateKey", "key"):
        assert spelling not in shown


@pytest.mark.parametrize(
    "damage",
    [
        *[f"delete from identity where name = '{part}'" for part in PARTS],  # noqa: S608 - the names are ours
        "update identity set value = x'00' where name = 'key'",
        "update identity set value = x'00' where name = 'coordinator'",
        "update identity set value = x'ff' where name = 'name'",
        "update identity set value = cast('{' as blob) where name = 'settings'",
        "update identity set value = cast('[]' as blob) where name = 'settings'",
        """update identity set value = cast('{"privacy": {"epsilon": -1}}' as blob) where name = 'settings'""",
    ],
)
def test_an_identity_with_parts_missing_or_wrong_is_not_used(
    store: sqlite3.Connection, key: Ed25519PrivateKey, damage: str
) -> None:
    identity(key).save(store)
    store.execute(damage)
    with pytest.raises(TamperedError, match="identity"):
        Identity.load(store)
