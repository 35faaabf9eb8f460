"""A coordinator served for a test, and a plain HTTP client for its doors."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordinator.serve import Plan, Running, serving
from fleet.quantization import Template
from tests.coordinator.conftest import Fleet

SETTINGS = """
[privacy]
epsilon = inf
planned_releases = 50
[round]
every = "1h"
rounds = 5
min_updates = 2
deadline = "1m"
[release]
every_rounds = 1
waves = [1.0]
"""
TASK = "tests.coordinator.tiny:TASK"


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back over HTTP."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of a refusal, which is a problem of RFC 9457 in every field."""
        problem = self.json()
        assert self.headers["content-type"] == "application/problem+json"
        assert set(problem) - {"now"} == {"type", "title", "status", "detail", "code"}
        assert problem["status"] == self.status
        return str(problem["code"])


def ask(url: str, *, method: str = "GET", data: Any = None, headers: dict[str, str] | None = None) -> Reply:
    """One request; ``data`` that is not bytes is sent as JSON."""
    body = data if isinstance(data, bytes | None) else json.dumps(data).encode()
    named = {"content-type": "application/json"} | (headers or {})
    request = urllib.request.Request(url, data=body, method=method, headers=named)  # noqa: S310 - our own server
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return Reply(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())


def prepare(folder: Path, template: Template, settings: str = SETTINGS) -> None:
    """A folder to serve from, founded as all of the tests' coordinators are: from the same weights."""
    if not folder.exists():
        Fleet(folder, template, nodes=0).close()
    (folder / "fleet.toml").write_text(settings)


@contextmanager
def served(folder: Path, template: Template, settings: str = SETTINGS, **plan: Any) -> Iterator[Running]:
    """A coordinator of the tests' tiny task, playing in a thread."""
    prepare(folder, template, settings)
    with serving(Plan(folder, task=TASK, **{"port": 0, **plan})) as running:
        thread = threading.Thread(target=running.run)
        thread.start()
        try:
            yield running
        finally:
            running.stop()
            thread.join()
