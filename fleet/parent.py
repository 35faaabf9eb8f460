"""A child process that ends with its parent, however that ends."""

import os
import sys
import threading


def end_with_parent() -> None:
    """The parent holds our input open and writes nothing more: when it ends, so does this."""
    threading.Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    sys.stdin.read()
    os._exit(1)
