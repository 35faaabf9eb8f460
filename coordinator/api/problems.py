"""Errors as RFC 9457 problem details: one documented code each, and nothing of our insides."""

import json
from http import HTTPStatus
from pathlib import Path
from traceback import extract_tb
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fleet.errors import FleetError, LinkError, RefusedError, UsageError
from fleet.events import Record

MEDIA_TYPE = "application/problem+json"
RETRY_S = 5

# docs/refusals.md explains each.
STATUS = {
    "malformed": 400,
    "credentials": 401,
    "token": 401,
    "signature": 401,
    "unknown-node": 401,
    "clock": 401,
    "replayed": 401,
    "revoked": 403,
    "invitation": 403,
    "not-a-reply": 403,
    "not-found": 404,
    "method": 405,
    "slow": 408,
    "name-taken": 409,
    "round-open": 409,
    "plan-spent": 409,
    "too-few": 409,
    "no-rollout": 409,
    "not-served": 409,
    "nothing-before": 409,
    "too-large": 413,
    "range": 416,
    "rate": 429,
    "internal": 500,
    "busy": 503,
}
_HTTP = {404: "not-found", 405: "method"}


def problem(code: str, detail: str, **more: Any) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a refusal."""
    status = STATUS.get(code, 400)
    fields = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    headers = {"content-type": MEDIA_TYPE, "cache-control": "no-store"}
    if status in (429, 503):
        headers["retry-after"] = str(RETRY_S)
    return status, headers, json.dumps({**fields, "code": code, **more}).encode()


def response(code: str, detail: str, **more: Any) -> Response:
    """The refusal as a response."""
    status, headers, body = problem(code, detail, **more)
    return Response(body, status, headers)


class Faultless:
    """An ASGI application that raises nothing: the server would print a page for whoever finds a fault of ours."""

    def __init__(self, app: ASGIApp, record: Record) -> None:
        self._app = app
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with a problem, if nothing was answered yet, and say on record what failed and where."""
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:  # noqa: BLE001 - whatever a fault raises
            reason = f"a fault of ours: {type(error).__name__}"
            last = extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            self._record("request-refused", code="internal", reason=reason, path=scope["path"], where=where)
            if not begun:
                await response("internal", reason)(scope, receive, send)


def install(app: FastAPI, record: Record) -> None:
    """Answer every error of ``app`` with a problem, and record it once."""

    def refused(code: str, detail: str, request: Request, **more: Any) -> Response:
        record("request-refused", code=code, reason=detail, path=request.url.path)
        return response(code, detail, **more)

    def fleet_error(request: Request, error: Exception) -> Response:
        if isinstance(error, RefusedError):
            more = {"now": request.app.state.clock().isoformat()} if error.code == "clock" else {}
            return refused(error.code, str(error), request, **more)
        if isinstance(error, UsageError):
            return refused("malformed", str(error), request)
        return refused("busy" if isinstance(error, LinkError) else "internal", str(error), request)

    def invalid(request: Request, error: Exception) -> Response:
        """Names the first field that is wrong; what was in it is not repeated."""
        assert isinstance(error, RequestValidationError)  # noqa: S101 - what it is registered for
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return refused("malformed", f"{where[:200] or 'body'}: {first['msg']}", request)

    def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
        return refused(_HTTP.get(error.status_code, "malformed"), "there is nothing here", request)

    app.add_exception_handler(FleetError, fleet_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)
    app.add_middleware(Faultless, record=record)  # not as a handler: Starlette raises again what it gave to one
