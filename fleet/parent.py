"""A child process that ends with its parent, however that ends."""

import os
import sys
import threading
from collections.abc import Callable


def end_with_parent(heed: Callable[[str], object] = lambda _: None) -> None:
    """The parent holds our input open: when it ends, so does this. What it writes until then is heeded line by line."""
    threading.Thread(target=_heed_and_end, args=[heed], daemon=True).start()


def _heed_and_end(heed: Callable[[str], object]) -> None:
    for line in sys.stdin:
        heed(line)
    os._exit(1)
