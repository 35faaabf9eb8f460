"""Where ``edgefleet`` begins: Ctrl-C is heard from the first line on, before the slow imports."""

import signal
import sys
from collections.abc import Callable

NAME = "edgefleet"
INTERRUPTED = 130


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; KeyboardInterrupt itself, once it passed an ``exec``, has Python end by the signal whatever we do."""


class Interrupt:
    """Remembers Ctrl-C: a library may turn the exception into one of its own."""

    def __init__(self) -> None:
        self.seen = False
        signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        self.seen = True
        raise Interrupted


def main() -> None:
    """Run the command line."""
    end_with(_run)


def _run(interrupted: Callable[[], bool]) -> int:
    from fleet.cli import run

    return run(interrupted)


def end_with(run: Callable[[Callable[[], bool]], int]) -> None:
    """Exit with what ``run`` returns; interrupted at any moment, say so in one line and exit with 130."""
    interrupt = Interrupt()
    code = INTERRUPTED
    try:
        code = run(lambda: interrupt.seen)
    except KeyboardInterrupt:
        interrupt.seen = True
    if interrupt.seen:
        print(f"{NAME}: interrupted", file=sys.stderr)
        code = INTERRUPTED
    sys.exit(code)


if __name__ == "__main__":
    main()
