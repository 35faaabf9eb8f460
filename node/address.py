"""Where a node's local API is found: a port on the loopback, or a Unix socket."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from fleet.errors import UsageError


@dataclass(frozen=True, slots=True)
class Port:
    """A TCP port on this device; 0 lets the system choose when it is bound."""

    host: str
    number: int

    def __str__(self) -> str:
        return f"http://[{self.host}]:{self.number}" if ":" in self.host else f"http://{self.host}:{self.number}"


def parse(where: str) -> Port | Path:
    """``http://127.0.0.1:8000``, or ``unix:/run/edgefleet.sock`` or the bare path of a socket.

    Raises:
        UsageError: It is neither, or it is not on this device: the API has no password.
    """
    if not where.startswith("http://"):
        path = where.removeprefix("unix:")
        if not path or "://" in path:
            raise UsageError(f"{where!r} is no address: use http://127.0.0.1:8000 or the path of a Unix socket")
        return Path(path)
    host, colon, number = where.removeprefix("http://").rstrip("/").rpartition(":")
    if not colon or not number.isascii() or not number.isdigit() or int(number) > 65535:
        raise UsageError(f"{where!r} names no port: use http://127.0.0.1:8000")
    host = host.removeprefix("[").removesuffix("]")
    if not is_loopback(host):
        raise UsageError(f"{where!r} is not on this device: the local API has no password, use 127.0.0.1 or ::1")
    return Port("127.0.0.1" if host == "localhost" else host, int(number))


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this device for sure."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
