"""HTTP to one coordinator and to nobody else: pinned, bounded in bytes and time, never redirected, by no proxy."""

import http.client
import io
import json
import math
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from fleet.errors import BusyError, LinkError, RefusedError, TrustError, UsageError
from fleet.signing import sha256
from node.timing import retry_after

CONNECT_S = 10.0
SILENCE_S = 30.0  # between two pieces of an answer
MIN_BYTES_PER_S = 512  # slower than this, after one silence, is a drip that holds us, not a link
PARALLEL = 4
OVERHEAD_BYTES = 800  # headers both ways and TLS records of one request: an estimate, for metered links
MAX_REPLY_BYTES = 1 << 20
_PIECE_BYTES = 65_536
_MAX_PROBLEM_BYTES = 4096
_BODILESS = (204, 304)

Spend = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Reply:
    """A status, headers in lower case, and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """A status, headers in lower case, and the body as it arrives; a body that is cut short raises LinkError."""

    status: int
    headers: Mapping[str, str]
    pieces: Iterator[bytes]


class Transport:
    """Requests to one coordinator over kept connections; threads may share it.

    Args:
        url: The coordinator's public listener, ``http://`` or ``https://``.
        authority: PEM of the only authority that may vouch for the server; the system's if it is None.
        spend: Told of every byte, before it is sent or as it arrives; may raise AllowanceError.
        silence_s: Longest silence before a connection is given up, in seconds.
    """

    def __init__(
        self, url: str, *, authority: str | None = None, spend: Spend | None = None, silence_s: float = SILENCE_S
    ) -> None:
        self._host, self._pool = _pool(url, authority, silence_s)
        self._prefix = urlsplit(url).path.rstrip("/")
        self._spend: Spend = spend or (lambda count: None)
        self._silence_s = silence_s

    def send(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        limit: int = MAX_REPLY_BYTES,
    ) -> Reply:
        """Send a request and read the whole reply, whatever its status.

        Raises:
            LinkError: The link failed, or the reply is longer than ``limit`` bytes, or too slow.
            TrustError: The server is not the coordinator that this node was enrolled with.
        """
        with self.stream(method, path, body=body, headers=headers) as head:
            parts, size = [], 0
            for piece in head.pieces:
                size += len(piece)
                if size > limit:
                    raise LinkError(f"{self._host}{path}: the reply is longer than {limit} bytes")
                parts.append(piece)
            return Reply(head.status, head.headers, b"".join(parts))

    @contextmanager
    def stream(
        self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Iterator[Head]:
        """Send a request; the reply's body is read by whom it is for. Errors as in ``send``."""
        self._spend(len(body) + OVERHEAD_BYTES)
        sent = {**(headers or {}), "Content-Length": str(len(body)), "Accept-Encoding": "identity"}
        if not body:
            del sent["Content-Length"]
        with self._our_errors(path):
            response = self._pool.urlopen(
                method,
                self._prefix + path,
                body=io.BytesIO(body) if body else None,  # in blocks, each with its own timeout: uplinks are slow
                headers=sent,
                redirect=False,
                retries=False,
                pool_timeout=math.ceil(self._silence_s),
                preload_content=False,
                decode_content=False,
            )
        try:
            lower = {name.lower(): value for name, value in response.headers.items()}
            if response.status not in _BODILESS and not lower.keys() & {"content-length", "transfer-encoding"}:
                raise LinkError(
                    f"{self._host}{path}: the reply was cut in its headers"
                )  # it would pass for an empty one
            yield Head(response.status, lower, self._pieces(response, path))
        finally:
            response.close()  # a connection is kept only if its reply was read to the end, and then it is back already
            response.release_conn()

    def close(self) -> None:
        """Let go of the connections."""
        self._pool.close()

    def _pieces(self, response: urllib3.response.BaseHTTPResponse, path: str) -> Iterator[bytes]:
        begun, size = time.monotonic(), 0
        with self._our_errors(path):
            while piece := response.read1(_PIECE_BYTES, decode_content=False):
                size += len(piece)
                self._spend(len(piece))
                if time.monotonic() - begun > self._silence_s + size / MIN_BYTES_PER_S:
                    raise LinkError(f"{self._host}{path}: {size} bytes in {time.monotonic() - begun:.0f} s is too slow")
                yield piece

    @contextmanager
    def _our_errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
            cause = _certificate_error(error)
            if cause:
                raise TrustError(
                    f"{self._host} is not the coordinator that this node was enrolled with, or this clock "
                    f"({datetime.now(UTC):%Y-%m-%d %H:%M} UTC) is wrong: {cause}"
                ) from error
            raise LinkError(f"{self._host}{path}: {_cause(error)}") from error


def checked(reply: Reply, what: str) -> Reply:
    """The reply, if it is one of success.

    Raises:
        BusyError: Come back later.
        RefusedError: The coordinator refused, with its code.
        LinkError: It failed, or answers something that it never should, such as a redirection.
    """
    if reply.status in (200, 206, 304):
        return reply
    code, detail = problem(reply.body)
    if reply.status in (429, 503):
        wait = retry_after(reply.headers.get("retry-after"), datetime.now(UTC))
        raise BusyError(f"{what}: the coordinator is busy ({reply.status})", wait)
    if 400 <= reply.status < 500:
        raise RefusedError(code or str(reply.status), f"{what}: {detail or 'refused'} ({reply.status})")
    raise LinkError(f"{what}: the coordinator answered {reply.status}")


def problem(body: bytes) -> tuple[str, str]:
    """The code and the sentence of an error's body, in RFC 9457's form or Flower's; empty where there is none."""
    try:
        data = json.loads(body[:_MAX_PROBLEM_BYTES])
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(data, dict):
        return "", ""
    return str(data.get("code", ""))[:40], str(data.get("detail", ""))[:200]


def shown_authority(url: str, fingerprint: str, *, silence_s: float = SILENCE_S) -> str:
    """The certificate with this SHA-256 in the chain that the server shows, as PEM.

    Nothing is believed here but the fingerprint, which a person carried over; what follows must be verified with
    the certificate that this returns.

    Raises:
        LinkError: The server cannot be reached.
        TrustError: It shows no such certificate.
    """
    parts = urlsplit(url)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(
        parts.hostname or "", parts.port, timeout=min(CONNECT_S, silence_s), context=context
    )
    try:
        connection.connect()
        chain = _chain(connection.sock)
    except OSError as error:
        raise LinkError(f"{parts.netloc}: {error}") from error
    finally:
        connection.close()
    for certificate in chain:
        if sha256(certificate) == fingerprint:
            return ssl.DER_cert_to_PEM_cert(certificate)
    raise TrustError(f"{parts.netloc} does not show the authority that the invitation names")


def _chain(sock: Any) -> list[bytes]:
    """What the server showed, in DER: ``SSLSocket`` has a public name for it from Python 3.13 on."""
    if hasattr(sock, "get_unverified_chain"):
        return list(sock.get_unverified_chain())
    return [certificate.public_bytes(2) for certificate in sock._sslobj.get_unverified_chain() or ()]


class _Deadline:
    """Mixin of connections: a head that only drips is cut when a silence of that length would have been."""

    sock: Any

    def getresponse(self) -> Any:
        sock = self.sock
        timer = threading.Timer(sock.gettimeout(), _cut, (sock,))
        timer.daemon = True
        timer.start()
        try:
            return super().getresponse()  # type: ignore[misc]
        finally:
            timer.cancel()


class _Plain(_Deadline, HTTPConnection):
    pass


class _Tls(_Deadline, HTTPSConnection):
    pass


def _cut(sock: Any) -> None:
    with suppress(OSError):
        sock.shutdown(2)


def _pool(url: str, authority: str | None, silence_s: float) -> tuple[str, urllib3.HTTPConnectionPool]:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise UsageError(f"{url}: a coordinator's address is http://HOST:PORT or https://HOST:PORT")
    if authority and parts.scheme == "http":
        raise UsageError(f"{url}: with a pinned authority the address must be https://")
    options: dict[str, Any] = {
        "maxsize": PARALLEL,
        "block": True,
        "timeout": urllib3.Timeout(connect=min(CONNECT_S, silence_s), read=silence_s),
    }
    pool: urllib3.HTTPConnectionPool
    if parts.scheme == "https":
        context = ssl.create_default_context(cadata=authority)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        pool = urllib3.HTTPSConnectionPool(parts.hostname, parts.port, ssl_context=context, **options)
        pool.ConnectionCls = _Tls
    else:
        pool = urllib3.HTTPConnectionPool(parts.hostname, parts.port, **options)
        pool.ConnectionCls = _Plain
    return parts.netloc, pool


def _certificate_error(error: BaseException | None) -> str:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        if isinstance(error, urllib3.exceptions.SSLError) and error.args and isinstance(error.args[0], Exception):
            error = error.args[0]
        else:
            error = error.__cause__ or error.__context__
    return ""


def _cause(error: Exception) -> str:
    text = str(error).split(": ", 1)[-1] if isinstance(error, urllib3.exceptions.NewConnectionError) else str(error)
    return text[:200] or type(error).__name__
