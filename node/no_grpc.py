"""Flower imports gRPC wherever it is imported itself. A node speaks HTTP: without gRPC it has 10 MB less to hold."""

import sys
from types import ModuleType

_NAMES = ("grpc", "grpc._utilities")


class _Absent(ModuleType):
    """Has a class of every name, for annotations and as a base; there is nothing to call."""

    __version__ = "absent"

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def leave_grpc_out() -> None:
    """Let Flower find an empty gRPC, in this process, if it has not found the real one."""
    if any(name in sys.modules for name in _NAMES):
        return
    modules = {name: _Absent(name) for name in _NAMES}
    # Code that Flower generated asks whether the gRPC that is installed is older than what it was generated for.
    modules["grpc._utilities"].first_version_is_lower = lambda *versions: False  # type: ignore[attr-defined]
    sys.modules.update(modules)
