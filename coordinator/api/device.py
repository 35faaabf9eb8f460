"""What devices may ask over HTTP, beside Flower's Fleet API on the same listener.

All bodies are JSON in UTF-8, at most 64 KiB. A *sealed* request is ``{"body": B64, "signature": B64}``: standard base64
of ``fleet.signing.Sealed``. An error is RFC 9457, ``application/problem+json``:
``{"type": "about:blank", "title": str, "status": int, "detail": str, "code": str}``; the codes are in docs/refusals.md.
A 503 and a 429 carry ``Retry-After`` in seconds.

GET /api/v1/time
    No credentials. -> 200 ``{"now": "2026-12-01T12:00:00.123456+00:00"}``

POST /api/v1/enrol
    Sealed ``fleet.enrolment.Enrolment`` (by ``Enrolment.sealed``). No credentials but the secret in it.
    -> 200 ``fleet.enrolment.Welcome.to_json()``; read it with ``Welcome.checked(answer, invitation)``:
    ``{"instruction_key": B64, "body": B64, "signature": B64}``, sealed with that key over
    ``{"name": str, "root": B64, "task": {"spec": {...}, "reference": str},
    "settings": {"privacy": {...}, "round": {...}, ...}, "flower_id": int}``.
    The very same request (same keys, same secret) may be sent again and is answered alike.
    -> 400 malformed; 401 signature; 401 clock, with ``"now"`` beside ``code``; 403 invitation (unknown, used, expired,
    for another name); 409 name-taken.

POST /api/v1/token
    Sealed ``fleet.enrolment.TokenRequest``: ``{node, nonce, time}``; nonce 16 to 64 ASCII characters, once; time within
    5 minutes of ours.
    -> 200 ``{"token": "eyJ...", "expires": "2026-12-01T12:10:00+00:00"}``, an Ed25519 JWT of 10 minutes.
    -> 400 malformed; 401 unknown-node, signature, replayed; 401 clock, with ``"now"``; 403 revoked; 429 rate.

The rest needs ``Authorization: Bearer TOKEN``; 401 token (missing, malformed, expired), 403 revoked.

GET /api/v1/repository/metadata/{NAME}.json and GET /api/v1/repository/targets/{PATH}
    The TUF repository. ``ETag``, ``If-None-Match`` -> 304, one ``Range`` -> 206 or 416. 404 not-found.

GET /api/v1/status
    -> 200 ``{"round": int | null, "shelf": int, "poll_s": int}``: the open round, the version of what is published
    (TUF's snapshot: it grows with every base, release and step of a rollout), and in how many seconds to ask again.
"""

import os
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Protocol

from fastapi import Depends, FastAPI, Header, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from coordinator.access import Access
from coordinator.api.problems import install, response
from fleet.enrolment import decoded
from fleet.errors import RefusedError
from fleet.events import Record
from fleet.signing import Sealed

_NEXT_ROOT = re.compile(r"metadata/[0-9]{1,9}\.root\.json")

MAX_JSON = 64 * 1024
CHUNK = 256 * 1024


class Status(Protocol):
    """What a device may know of the fleet."""

    def __call__(self) -> dict[str, Any]: ...


class SealedBody(BaseModel):
    """A sealed request in JSON."""

    model_config = ConfigDict(strict=True, extra="forbid")

    body: Annotated[str, Field(max_length=MAX_JSON)]
    signature: Annotated[str, Field(max_length=200)]

    def sealed(self) -> Sealed:
        """The signed bytes."""
        try:
            return Sealed(decoded(self.body), decoded(self.signature))
        except ValueError as error:
            raise RefusedError("malformed", f"body and signature are base64: {error}") from error


def device_app(
    access: Access,
    repository: Path,
    *,
    status: Status,
    clock: Callable[[], datetime],
    record: Record,
) -> FastAPI:
    """The application; ``repository`` is the folder of metadata and targets."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.clock = clock
    install(app, record)
    member = _member(access)

    @app.get("/api/v1/time")
    def time() -> dict[str, str]:
        return {"now": clock().isoformat()}

    @app.post("/api/v1/enrol")
    def enrol(request: SealedBody) -> dict[str, Any]:
        return access.enrol(request.sealed())

    @app.post("/api/v1/token")
    def token(request: SealedBody) -> dict[str, str]:
        text, expires = access.token(request.sealed())
        return {"token": text, "expires": expires.isoformat()}

    @app.get("/api/v1/status", dependencies=[member])
    def fleet_status() -> dict[str, Any]:
        return status()

    @app.get("/api/v1/repository/{path:path}", dependencies=[member])
    def file(
        path: str,
        range_: Annotated[str, Header(alias="range", max_length=100)] = "",
        known: Annotated[str, Header(alias="if-none-match", max_length=1000)] = "",
    ) -> Response:
        return _file(repository, path, range_, known)

    return app


def _member(access: Access) -> Any:
    def member(authorization: Annotated[str, Header(max_length=4096)] = "") -> None:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise RefusedError("token", "this needs a bearer token: ask for one at /api/v1/token")
        access.authenticate(token)

    return Depends(member)


def _file(repository: Path, path: str, range_: str, known: str) -> Response:
    if _NEXT_ROOT.fullmatch(path) and not (repository / path).exists():
        return response("not-found", "there is no newer root")  # every look at the shelf ends here: no news for a log
    file = _opened(repository, path)
    size = os.fstat(file.fileno()).st_size
    etag = f'"{size:x}-{os.fstat(file.fileno()).st_mtime_ns:x}"'
    headers = {"etag": etag, "accept-ranges": "bytes", "cache-control": "no-cache"}
    if etag in {part.strip() for part in known.split(",")}:
        file.close()
        return Response(status_code=304, headers=headers)
    wanted = _wanted(range_, size)
    if wanted is None:
        headers["content-length"] = str(size)
        return StreamingResponse(_read(file, 0, size), 200, headers, "application/octet-stream")
    start, end = wanted
    if start >= end:
        file.close()
        raise RefusedError("range", f"the file has {size} bytes")
    headers |= {"content-length": str(end - start), "content-range": f"bytes {start}-{end - 1}/{size}"}
    return StreamingResponse(_read(file, start, end), 206, headers, "application/octet-stream")


def _opened(repository: Path, path: str) -> BinaryIO:
    """A file of the repository: no hidden ones, no links, nothing above or beside it."""
    parts = path.split("/")
    ours = parts[0] in ("metadata", "targets") and not any(not part or part.startswith(".") for part in parts)
    if not ours or "\\" in path or "\0" in path:
        raise RefusedError("not-found", "the repository has no such file")
    place = repository.joinpath(*parts)
    try:
        if place.resolve(strict=True) != repository.resolve() / path or not place.is_file():
            raise RefusedError("not-found", "the repository has no such file")
        return open(place, "rb")
    except OSError as error:
        raise RefusedError("not-found", "the repository has no such file") from error


def _wanted(header: str, size: int) -> tuple[int, int] | None:
    """Start and end of the one range asked for; None for the whole file, as for anything else (RFC 9110 §14.2)."""
    unit, _, text = header.partition("=")
    first, dash, last = text.partition("-")
    digits = (first + last).isascii() and (first + last).isdigit() and len(text) <= 40
    if unit.strip() != "bytes" or not dash or not digits:
        return None
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1 if last else size)


def _read(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    with file:
        file.seek(start)
        while start < end and (chunk := file.read(min(CHUNK, end - start))):
            start += len(chunk)
            yield chunk
