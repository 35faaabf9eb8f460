"""What ``edgefleet node run`` becomes: ``python -P -m node.running ORDER``, the order being one object in JSON."""

import json
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fleet.__main__ import NAME, end_with
from fleet.errors import FleetError, MissingExtraError
from node.no_grpc import leave_grpc_out


def main() -> None:
    """Run the node of a folder until SIGTERM or Ctrl-C; a known error is one line and its exit code."""
    end_with(_run)


def _run(interrupted: Callable[[], bool]) -> int:
    order = json.loads(sys.argv[1])
    if order["online"]:
        leave_grpc_out()
    else:
        _spare_openssl()
    try:
        _serve(Path(order.pop("folder")), **order)
    except FleetError as error:
        if interrupted():
            raise KeyboardInterrupt from error
        print(f"{NAME}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _serve(folder: Path, *, online: bool, **order: Any) -> None:
    extra = "'edgefleet[train]', or --offline" if online else "'edgefleet[node]'"
    try:
        from node.resident import Resident, owned
    except ImportError as error:
        raise MissingExtraError(f"{error.name} is missing: pip install 'edgefleet[node]'") from error
    with owned(folder):
        try:
            resident = Resident(folder, online=online, **order)
        except ImportError as error:
            raise MissingExtraError(f"{error.name} is missing: pip install {extra}") from error
        signal.signal(signal.SIGTERM, lambda *_: resident.stop())
        print(f"{resident.agent.name} answers at {resident.address}", flush=True)
        resident.run()


def _spare_openssl() -> None:
    """Let hashlib take Python's own SHA-256 where it has one: a node that only answers has no other use for OpenSSL."""
    if find_spec("_sha256") or find_spec("_sha2"):
        sys.modules["_hashlib"] = None  # type: ignore[assignment] # as hashlib expects where Python has no OpenSSL


if __name__ == "__main__":
    main()
