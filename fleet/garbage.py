"""Work that makes so many objects that searching them for garbage, time and again, costs more than it finds."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unsearched() -> Iterator[None]:
    """Nothing is searched for garbage meanwhile."""
    searched = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searched:
            gc.enable()


@contextmanager
def kept_for_good() -> Iterator[None]:
    """What a start makes stays: it is searched for garbage neither in the start nor later."""
    with unsearched():
        try:
            yield
        finally:
            gc.freeze()
