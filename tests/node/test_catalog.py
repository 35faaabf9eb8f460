"""What was signed for other bytes, or not at all, is neither learned from nor served."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fleet.errors import SignatureError
from fleet.release import Base, Release, base_path, release_path, template_path
from fleet.signing import sha256
from node.catalog import Catalog
from tests.node.conftest import Toy

Files = dict[str, bytes]


@pytest.fixture
def signed(toy: Toy) -> Files:
    """Base 1 and release 1 as the coordinator signs them, by path."""
    release, _, golden = toy.made(1)
    payload = toy.template.quantize(toy.weights(scale=9 / 8))
    base = Base(toy.task.name, 1, 1, sha256(payload), toy.template.digest)
    return {
        base_path(1, "manifest.json"): base.to_bytes(),
        base_path(1, "weights.bin"): payload,
        release_path(1, "manifest.json"): release.to_bytes(),
        release_path(1, "weights.bin"): payload,
        release_path(1, "golden.bin"): golden,
        template_path(toy.template.digest): toy.template.to_bytes(),
    }


class Shelf:
    """An installer of whatever is in the dictionary."""

    def __init__(self, files: Files) -> None:
        self.fetch = files.get


def catalog(files: Files) -> Catalog:
    shelf: Any = Shelf(files)
    return Catalog(shelf)


def altered(path: str, kind: type[Base] | type[Release], **fields: int) -> Callable[[Files, Toy], None]:
    def alter(files: Files, toy: Toy) -> None:
        files[path] = replace(kind.from_bytes(files[path]), **fields).to_bytes()

    return alter


def other_weights(path: str) -> Callable[[Files, Toy], None]:
    def alter(files: Files, toy: Toy) -> None:
        files[path] = toy.template.quantize(toy.weights(right=False))

    return alter


def lost(path: str) -> Callable[[Files, Toy], object]:
    return lambda files, toy: files.pop(path)


def other_template(files: Files, toy: Toy) -> None:
    path = template_path(toy.template.digest)
    files[path] = files[path].replace(b'"dtype"', b'"dtypo"') + b" "


def test_what_was_signed_as_it_is_is_read(signed: Files, toy: Toy) -> None:
    base, weights = catalog(signed).base(1)
    release, artifact, golden = catalog(signed).release(1)
    assert (base.number, release.number) == (1, 1)
    assert weights.shape == (toy.template.layout.size,)
    assert sha256(artifact) == release.artifact
    assert golden == signed[release_path(1, "golden.bin")]


BASE, RELEASE = base_path(1, "manifest.json"), release_path(1, "manifest.json")


@pytest.mark.parametrize(
    ("kind", "spoil", "said"),
    [
        pytest.param("base", altered(BASE, Base, number=2), "base 1", id="another base"),
        pytest.param("base", other_weights(base_path(1, "weights.bin")), "base 1", id="another base's weights"),
        pytest.param("base", lost(base_path(1, "weights.bin")), "weights.bin", id="a base without weights"),
        pytest.param("base", other_template, "template", id="a base's other template"),
        pytest.param("release", altered(RELEASE, Release, number=2), "release 1", id="another release"),
        pytest.param(
            "release", other_weights(release_path(1, "weights.bin")), "release 1", id="another release's weights"
        ),
        pytest.param(
            "release", lost(release_path(1, "golden.bin")), "golden.bin", id="a release without golden inputs"
        ),
        pytest.param("release", other_template, "template", id="a release's other template"),
    ],
)
def test_what_is_not_what_was_signed_is_neither_learned_from_nor_served(
    signed: Files, toy: Toy, kind: str, spoil: Callable[[Files, Toy], object], said: str
) -> None:
    spoil(signed, toy)
    read = {"base": Catalog.base, "release": Catalog.release}[kind]
    with pytest.raises(SignatureError, match=f"{said}.* signed"):
        read(catalog(signed), 1)
