"""What was put into the vault comes back as it was, or not at all."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coordinator.vault import Vault
from fleet import durable
from fleet.errors import TamperedError
from fleet.signing import sha256

ARRAY = np.array([1.5, -2.25, 3e-42, 0.0, -0.0], np.float32)


@pytest.mark.parametrize("array", [ARRAY, np.zeros(0, np.float32), ARRAY[::-1], np.stack([ARRAY, ARRAY])])
def test_what_was_put_comes_back_to_the_bit_and_flat(tmp_path: Path, array: np.ndarray) -> None:
    vault = Vault(tmp_path / "vault")
    found = vault.get(vault.put(array))
    assert (found.dtype, found.shape) == (np.float32, (array.size,))
    assert found.tobytes() == array.tobytes()


def test_an_array_is_named_by_the_digest_of_its_bytes_and_kept_once(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    assert vault.put(ARRAY) == vault.put(ARRAY.copy()) == sha256(ARRAY.astype("<f4").tobytes())
    assert len(list(tmp_path.iterdir())) == 1


def test_another_process_finds_what_was_put(tmp_path: Path) -> None:
    name = Vault(tmp_path).put(ARRAY)
    np.testing.assert_array_equal(Vault(tmp_path).get(name), ARRAY)


def test_what_comes_back_may_be_changed_without_changing_the_vault(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    name = vault.put(ARRAY)
    vault.get(name)[0] = 7
    assert vault.get(name)[0] == 1.5


SPOILED: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty, as a file that was never flushed": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0\0\0\0"),
    "one bit flipped": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_an_array_that_is_not_what_was_put_is_never_given_out(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    vault = Vault(tmp_path)
    name = vault.put(ARRAY)
    spoil(tmp_path / name)
    with pytest.raises(TamperedError, match=name[:12]):
        vault.get(name)


def test_a_write_that_was_interrupted_leaves_nothing_and_can_be_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = Vault(tmp_path)
    with monkeypatch.context() as cut:
        cut.setattr(durable.os, "replace", lambda *names: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            vault.put(ARRAY)
    with pytest.raises(TamperedError):
        vault.get(sha256(ARRAY.tobytes()))
    np.testing.assert_array_equal(vault.get(vault.put(ARRAY)), ARRAY)


def test_a_cleared_vault_is_empty_and_takes_the_same_again(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    name = vault.put(ARRAY)
    for _ in range(2):
        vault.clear()
    with pytest.raises(TamperedError):
        vault.get(name)
    np.testing.assert_array_equal(vault.get(vault.put(ARRAY)), ARRAY)
