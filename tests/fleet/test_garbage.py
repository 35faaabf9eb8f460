"""Garbage is searched for again after what was done without, whatever came of it."""

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from fleet.garbage import kept_for_good, unsearched

ways = pytest.mark.parametrize("way", [unsearched, kept_for_good])
Way = Callable[[], AbstractContextManager[None]]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    frozen = gc.get_freeze_count()
    yield
    gc.enable()
    if gc.get_freeze_count() != frozen:
        gc.unfreeze()


@ways
def test_nothing_is_searched_meanwhile_and_everything_afterwards(way: Way) -> None:
    with way():
        assert not gc.isenabled()
    assert gc.isenabled()


@ways
def test_an_error_does_not_end_the_search_for_ever(way: Way) -> None:
    with pytest.raises(KeyError), way():
        raise KeyError
    assert gc.isenabled()


@ways
def test_who_does_not_search_does_not_begin_to(way: Way) -> None:
    gc.disable()
    with way():
        pass
    assert not gc.isenabled()


def test_only_what_is_kept_for_good_is_never_searched_again() -> None:
    before = gc.get_freeze_count()
    with unsearched():
        pass
    assert gc.get_freeze_count() == before
    with kept_for_good():
        pass
    assert gc.get_freeze_count() > before
