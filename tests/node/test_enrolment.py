"""Whom a device joins: one fleet, for good, and none that spends more privacy than its owner agreed to."""

from contextlib import closing
from dataclasses import replace
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
from tests.authority import Authority
from tests.node.conftest import TASK

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
IDENTITY = Identity("n1", KEY.private_bytes_raw(), bytes(32), b"root", Settings(), TASK)
AUTHORITY = Authority.make("ours")
OURS = Invitation("https://127.0.0.1:9", "n1", "secret", sha256(b"root"), sha256(bytes(32)), AUTHORITY.fingerprint)


@pytest.fixture
def enrolled(tmp_path: Path) -> Path:
    store = open_store(tmp_path / "node.db")
    IDENTITY.save(store)
    Membership(OURS.url, AUTHORITY.pem, KEY, ec.generate_private_key(ec.SECP384R1()), "here.py:TASK").save(store)
    store.close()
    return tmp_path


def known(folder: Path) -> tuple[str, str, str]:
    """What is pinned: the address, the authority, and where the task's code is."""
    with closing(open_store(folder / "node.db")) as store:
        membership = Membership.load(store)
    assert membership is not None
    return membership.url, membership.authority, membership.reference


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        pytest.param({"root": sha256(b"other")}, "another fleet", id="another root"),
        pytest.param({"key": sha256(bytes([1] * 32))}, "another fleet", id="another key"),
        pytest.param({"url": "https://127.0.0.1:10"}, "another authority or address", id="another address"),
        pytest.param({"authority": sha256(b"other")}, "another authority or address", id="another authority"),
        pytest.param({"authority": ""}, "another authority or address", id="no authority"),
    ],
)
def test_an_enrolled_node_is_led_nowhere_else(enrolled: Path, changed: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        join(enrolled, replace(OURS, **changed), "", clock=lambda: NOW)
    assert known(enrolled) == (OURS.url, AUTHORITY.pem, "here.py:TASK")


def test_a_fleet_that_spends_more_than_the_owner_agreed_to_is_not_joined(enrolled: Path) -> None:
    with pytest.raises(UsageError, match=r"epsilon 8, --max-epsilon is 4.* revoke n1"):
        join(enrolled, OURS, "", clock=lambda: NOW, max_epsilon=4.0)
