"""Long starts without the search for garbage."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept_for_good() -> Iterator[None]:
    """What a start makes stays: it is searched for garbage neither in the start nor later.

    Imports and the exporter make so many objects that searching took a fifth of their time.
    """
    searched = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if searched:
            gc.enable()
