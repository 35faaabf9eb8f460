"""Does an artifact load and compute here what was signed? Asked in a child process, which may die of the answer."""

import json
import resource
import signal
import sys
from pathlib import Path
from typing import Protocol

import numpy as np

from fleet.errors import StoreError, TrustError
from fleet.release import Release

MEMORY_BYTES = 4 << 30
CPU_SECONDS = 20
TIMEOUT_S = 60
# By a device that was short of memory, or that is being shut down: it says nothing of the release.
ENDED_FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


class Admit(Protocol):
    """Decides whether an artifact may go on; ``admit`` below, unless a simulation shares one answer."""

    def __call__(self, artifact: Path, release: Release, golden: bytes, shape: tuple[int, ...]) -> None: ...


def admit(artifact: Path, release: Release, golden: bytes, shape: tuple[int, ...]) -> None:
    """Refuse an artifact that does not load within limits or does not give the signed golden outputs.

    Raises:
        StoreError: This device had no time or no memory for it: to be tried again.
        TrustError: Says which; the release must not go on.
    """
    import subprocess  # half a megabyte, for a moment once a release

    order = json.dumps({"artifact": str(artifact), "shape": shape})
    try:
        child = subprocess.run(  # noqa: S603 - our own module, by this interpreter
            [sys.executable, "-P", "-m", "node.admission", order],
            input=golden,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise StoreError(f"release {release.number} did not load within {TIMEOUT_S} s") from error
    if -child.returncode in ENDED_FROM_OUTSIDE:
        raise StoreError(f"release {release.number}: the process that loads it was ended")
    if child.returncode:
        reason = child.stderr.decode(errors="replace").strip().splitlines() or [f"exit {child.returncode}"]
        raise TrustError(f"release {release.number} does not load: {reason[-1]}")
    if child.stdout.decode() != release.golden:
        raise TrustError(f"release {release.number} computes other golden outputs than were signed ({release.runtime})")


def _golden_digest(order: str, golden: bytes) -> str:
    from fleet.artifact import golden_digest, open_session

    wish = json.loads(order)
    inputs = np.frombuffer(golden, "<f4").astype(np.float32).reshape(-1, *wish["shape"])
    return golden_digest(open_session(Path(wish["artifact"]).read_bytes()), inputs)


def _main() -> None:
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    _limit(resource.RLIMIT_CPU, CPU_SECONDS)
    sys.stdout.write(_golden_digest(sys.argv[1], sys.stdin.buffer.read()))


def _limit(what: int, most: int) -> None:
    """Within what the device allows anyway, and below its hard limit, which would end it by SIGKILL."""
    soft, hard = resource.getrlimit(what)
    bounds = [bound for bound in (most, soft) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(what, (min([*bounds, hard - 1] if hard != resource.RLIM_INFINITY else bounds), hard))


if __name__ == "__main__":
    _main()
