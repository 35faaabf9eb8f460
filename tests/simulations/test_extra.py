"""What a simulation needs is asked for before it begins."""

import importlib.util

import pytest

from fleet.errors import MissingExtraError
from simulations import extra


@pytest.mark.parametrize("missing", ["jinja2", "onnxruntime", "onnxscript", "opacus", "seglearn"])
def test_a_package_that_is_missing_is_named_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(extra, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(MissingExtraError, match=rf"{missing} is missing: pip install 'edgefleet\[simulate\]'"):
        extra.check_installed()


def test_nothing_is_missing_here() -> None:
    extra.check_installed()
