"""Whom a device joins: one fleet, for good, and none that spends more privacy than its owner agreed to."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fleet.enrolment import Invitation
from fleet.errors import UsageError
from fleet.settings import Settings
from fleet.signing import sha256
from node.enrolment import join
from node.identity import Identity
from node.membership import Membership
from node.store import open_store
from tests.node.conftest import TASK

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
IDENTITY = Identity("n1", KEY.private_bytes_raw(), bytes(32), b"root", Settings(), TASK)
OURS = Invitation("http://127.0.0.1:9", "n1", "secret", sha256(b"root"), sha256(bytes(32)))


@pytest.fixture
def enrolled(tmp_path: Path) -> Path:
    store = open_store(tmp_path / "node.db")
    IDENTITY.save(store)
    Membership(OURS.url, "", KEY, ec.generate_private_key(ec.SECP384R1())).save(store)
    store.close()
    return tmp_path


@pytest.mark.parametrize(
    ("root", "key"), [(b"other", bytes(32)), (b"root", bytes([1] * 32))], ids=["another root", "another key"]
)
def test_a_node_is_not_enrolled_into_another_fleet(enrolled: Path, root: bytes, key: bytes) -> None:
    theirs = Invitation("http://127.0.0.1:10", "n1", "secret", sha256(root), sha256(key))
    with pytest.raises(UsageError, match="another fleet"):
        join(enrolled, theirs, "", clock=lambda: NOW)
    store = open_store(enrolled / "node.db")
    membership = Membership.load(store)
    store.close()
    assert membership is not None
    assert membership.url == OURS.url


def test_a_fleet_that_spends_more_than_the_owner_agreed_to_is_not_joined(enrolled: Path) -> None:
    with pytest.raises(UsageError, match="epsilon 8, --max-epsilon is 4"):
        join(enrolled, OURS, "", clock=lambda: NOW, max_epsilon=4.0)
