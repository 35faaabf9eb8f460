"""The development key ring."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fleet.errors import TamperedError, UsageError
from fleet.trust.keys import KEY_OF, Keyring
from tests.power_cut import PowerCut, power_for_writes


def keyids(keyring: Keyring) -> dict[str, list[str]]:
    return {role: [signer.public_key.keyid for signer in keyring.signers(role)] for role in KEY_OF}


def p256() -> bytes:
    return generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_a_key_ring_holds_the_same_keys_after_a_restart(tmp_path: Path) -> None:
    made = Keyring.create(tmp_path)
    assert keyids(made) == keyids(Keyring.load(tmp_path)) == keyids(Keyring.create(tmp_path))


def test_only_snapshot_and_timestamp_share_a_key(tmp_path: Path) -> None:
    held = keyids(Keyring.create(tmp_path))
    assert held["snapshot"] == held["timestamp"]
    assert len({ids[0] for ids in held.values()}) == 5


def test_key_files_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    Keyring.create(tmp_path)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_a_key_ring_does_not_print_its_keys(tmp_path: Path) -> None:
    keyring = Keyring.create(tmp_path)
    assert repr(keyring) == f"Keyring(folder={tmp_path!r})"


@pytest.mark.parametrize("done", range(5))
def test_a_key_ring_cut_short_keeps_the_keys_it_had_made(tmp_path: Path, done: int) -> None:
    with power_for_writes(done), pytest.raises(PowerCut):
        Keyring.create(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pem")}
    Keyring.create(tmp_path)
    assert len(before) == done
    assert before.items() <= {path.name: path.read_bytes() for path in tmp_path.glob("*.pem")}.items()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty after a power cut"),
        pytest.param(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", id="garbled"),
        pytest.param(p256(), id="of another kind"),
    ],
)
def test_a_damaged_key_is_named_and_never_replaced(tmp_path: Path, content: bytes) -> None:
    Keyring.create(tmp_path)
    (tmp_path / "releases.pem").write_bytes(content)
    with pytest.raises(TamperedError, match=r"releases\.pem") as refused:
        Keyring.create(tmp_path)
    assert "\n" not in str(refused.value)
    assert (tmp_path / "releases.pem").read_bytes() == content


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    Keyring.create(tmp_path)
    (tmp_path / "root.pem").unlink()
    with pytest.raises(UsageError, match=r"root\.pem cannot be read: No such file"):
        Keyring.load(tmp_path)


def test_a_folder_that_cannot_be_written_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a file, not a folder")
    with pytest.raises(UsageError, match="cannot be written"):
        Keyring.create(tmp_path / "keys")


def test_an_unknown_role_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="role 'release'"):
        Keyring.create(tmp_path).signers("release")
