"""What the operator may ask over HTTP, on loopback: everything needs the bearer token in the coordinator's folder.

GET  /admin/v1/status | nodes | rounds | releases | releases/{number} | rollout
POST /admin/v1/invitations {"name"} | revocations {"name"} | rounds | rollout/pause | rollout/resume | rollout/withdraw
"""

import hmac
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Protocol

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from coordinator.api.gate import App, Receive, Scope, Send, refuse
from coordinator.api.problems import install
from fleet.errors import RefusedError
from fleet.events import Record


class Controls(Protocol):
    """What the operator's door needs of the service behind it. Changes return when they are durable."""

    def status(self) -> dict[str, Any]: ...
    def nodes(self) -> list[dict[str, Any]]: ...
    def rounds(self) -> list[dict[str, Any]]: ...
    def releases(self) -> list[dict[str, Any]]: ...
    def release(self, number: int) -> dict[str, Any] | None: ...
    def rollout(self) -> dict[str, Any] | None: ...
    def invite(self, name: str) -> str: ...
    def revoke(self, name: str) -> None: ...
    def start_round(self) -> dict[str, Any]: ...
    def pause_rollout(self, *, paused: bool) -> dict[str, Any]: ...
    def withdraw(self) -> dict[str, Any]: ...


class Name(BaseModel):
    """A node's name."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: Annotated[str, Field(max_length=200)]


def admin_app(controls: Controls, token: str, *, clock: Callable[[], datetime], record: Record) -> App:
    """The application, behind its guard."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.clock = clock
    install(app, record)
    _reading(app, controls)
    _changing(app, controls)
    return Guard(app, token)


class Guard:
    """Nothing gets past without the token, known route or not."""

    def __init__(self, app: App, token: str) -> None:
        self.app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the operator in."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        scheme, _, shown = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(shown, self._token):
            await refuse(send, RefusedError("credentials", "this needs the token in the coordinator's folder"))
            return
        await self.app(scope, receive, send)


def _reading(app: FastAPI, controls: Controls) -> None:
    app.get("/admin/v1/status")(controls.status)
    app.get("/admin/v1/nodes")(controls.nodes)
    app.get("/admin/v1/rounds")(controls.rounds)
    app.get("/admin/v1/releases")(controls.releases)
    app.get("/admin/v1/rollout")(controls.rollout)

    @app.get("/admin/v1/releases/{number}")
    def release(number: int) -> dict[str, Any]:
        found = controls.release(number)
        if found is None:
            raise RefusedError("not-found", f"there is no release {number}")
        return found


def _changing(app: FastAPI, controls: Controls) -> None:
    @app.post("/admin/v1/invitations")
    def invite(request: Name) -> dict[str, str]:
        return {"invitation": controls.invite(request.name)}

    @app.post("/admin/v1/revocations")
    def revoke(request: Name) -> dict[str, str]:
        controls.revoke(request.name)
        return {"revoked": request.name}

    app.post("/admin/v1/rounds")(controls.start_round)

    @app.post("/admin/v1/rollout/pause")
    def pause() -> dict[str, Any]:
        return controls.pause_rollout(paused=True)

    @app.post("/admin/v1/rollout/resume")
    def resume() -> dict[str, Any]:
        return controls.pause_rollout(paused=False)

    app.post("/admin/v1/rollout/withdraw")(controls.withdraw)
