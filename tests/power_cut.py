"""Power that fails at a durable write."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fleet import durable


class PowerCut(BaseException):
    """Nothing below it is done any more."""


@contextmanager
def power_for_writes(count: int) -> Iterator[None]:
    """Power for ``count`` durable files; at the next one it fails."""
    real, left = durable.write, iter(range(count))

    def cut(path: Path, data: bytes, *, mode: int = 0o644) -> None:
        if next(left, None) is None:
            raise PowerCut
        real(path, data, mode=mode)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "write", cut)
        yield
