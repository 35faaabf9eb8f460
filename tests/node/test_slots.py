"""Slots: what is read is what was stored, to the last bit, and the pointer moves at once."""

import os
from pathlib import Path

import pytest

from fleet.errors import TamperedError
from fleet.release import Release
from fleet.signing import sha256
from node.slots import Pointer, Slots
from tests.power_cut import PowerCut

ARTIFACT, GOLDEN = b"the artifact", b"the golden inputs"
FILES = ("artifact.onnx", "golden.bin", "manifest.json", "digests.json")


def release(number: int = 1) -> Release:
    return Release("toy", number, number, "p", "t", sha256(ARTIFACT), "g", "onnxruntime 1.31", 10, 2)


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    slots = Slots(tmp_path / "slots")
    slots.store(release(), ARTIFACT, GOLDEN)
    return slots


def read(slots: Slots) -> tuple[Release, bytes, bytes]:
    return slots.release(1), slots.artifact(1), slots.golden(1)


def test_a_release_is_read_as_it_was_stored(tmp_path: Path, slots: Slots) -> None:
    assert read(slots) == read(Slots(tmp_path / "slots")) == (release(), ARTIFACT, GOLDEN)
    assert slots.path(1).read_bytes() == ARTIFACT
    assert slots.is_whole(1)


@pytest.mark.parametrize("name", FILES)
def test_no_bit_of_a_stored_release_can_flip_unseen(slots: Slots, name: str) -> None:
    path = slots.path(1).with_name(name)
    data = path.read_bytes()
    for i in range(len(data)):
        path.write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
        with pytest.raises(TamperedError, match="slot 1"):
            read(slots)
        assert not slots.is_whole(1)


@pytest.mark.parametrize("content", [None, b"", b"[]", b"null", b"{}"], ids=["missing", "empty", "list", "null", "{}"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_a_power_cut_took_is_seen(slots: Slots, name: str, content: bytes | None) -> None:
    path = slots.path(1).with_name(name)
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(TamperedError, match="slot 1"):
        read(slots)


def test_an_artifact_that_was_not_signed_is_not_read(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    slots.store(release(), b"another artifact", GOLDEN)
    with pytest.raises(TamperedError, match="not the one that was signed"):
        slots.artifact(1)


def test_a_release_that_was_never_stored_is_not_there(slots: Slots) -> None:
    assert not slots.is_whole(2)
    with pytest.raises(TamperedError, match=r"slot 2: manifest\.json cannot be read"):
        slots.release(2)


def test_there_is_no_pointer_before_the_first_release(slots: Slots) -> None:
    assert slots.pointer() is None


@pytest.mark.parametrize("pointer", [Pointer(1, None), Pointer(2, 1)])
def test_a_pointer_is_read_as_it_was_written(tmp_path: Path, slots: Slots, pointer: Pointer) -> None:
    slots.point(pointer)
    assert Slots(tmp_path / "slots").pointer() == pointer


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_power_cut_leaves_the_old_pointer_whole(slots: Slots, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def cut(*_: object) -> None:
        raise PowerCut

    slots.point(Pointer(1, None))
    with monkeypatch.context() as patch:
        patch.setattr(os, step, cut)
        with pytest.raises(PowerCut):
            slots.point(Pointer(2, 1))
    assert slots.pointer() == Pointer(1, None)
    slots.point(Pointer(2, 1))
    assert slots.pointer() == Pointer(2, 1)


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b'{"active": 1}', b"\xff"])
def test_a_damaged_pointer_is_seen_and_replaced(tmp_path: Path, slots: Slots, data: bytes) -> None:
    slots.point(Pointer(1, None))
    (tmp_path / "slots" / "active.json").write_bytes(data)
    with pytest.raises(TamperedError, match=r"active\.json cannot be read"):
        slots.pointer()
    slots.point(Pointer(1, None))
    assert slots.pointer() == Pointer(1, None)


def test_an_unchanged_pointer_costs_no_write(tmp_path: Path, slots: Slots) -> None:
    slots.point(Pointer(1, None))
    before = (tmp_path / "slots" / "active.json").stat().st_ino
    slots.point(Pointer(1, None))
    assert (tmp_path / "slots" / "active.json").stat().st_ino == before


def test_what_is_cleared_is_gone_and_all_else_stays(slots: Slots) -> None:
    for number in (2, 3):
        slots.store(release(number), ARTIFACT, GOLDEN)
    slots.point(Pointer(3, 2))
    slots.clear({1, 7})
    assert [slots.is_whole(number) for number in (1, 2, 3)] == [False, True, True]
    assert slots.pointer() == Pointer(3, 2)


def test_storing_a_release_again_heals_it(slots: Slots) -> None:
    slots.path(1).write_bytes(b"damaged")
    slots.store(release(), ARTIFACT, GOLDEN)
    assert read(slots) == (release(), ARTIFACT, GOLDEN)
