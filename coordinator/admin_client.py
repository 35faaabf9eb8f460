"""How the commands ask a running coordinator: over loopback, with the token in its folder."""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from fleet.errors import LinkError, RefusedError, UsageError

FILE = "admin.json"
TIMEOUT_S = 40.0


class AdminClient:
    """Asks the coordinator of a folder."""

    def __init__(self, folder: Path) -> None:
        """Find where it listens.

        Raises:
            UsageError: No coordinator was ever served from the folder, or it is not ours to read.
        """
        self._folder = folder
        try:
            found = json.loads((folder / FILE).read_bytes())
            self._url, self._token = str(found["url"]), str(found["token"])
        except OSError as error:
            hint = f"serve it first: edgefleet coordinator serve {folder}"
            raise UsageError(f"{folder / FILE}: {error.strerror}; {hint}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{folder / FILE} is damaged: serve the coordinator again") from error

    def get(self, path: str) -> Any:
        """What is there.

        Raises:
            LinkError: The coordinator does not run.
            RefusedError: It said no; with its code.
        """
        return self._ask("GET", path, None)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """What came of it.

        Raises:
            LinkError: The coordinator does not run.
            RefusedError: It said no; with its code.
        """
        return self._ask("POST", path, body or {})

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        request = urllib.request.Request(  # noqa: S310 - http on loopback, from our own file
            f"{self._url}/admin/v1/{path}",
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={"authorization": f"Bearer {self._token}", "content-type": "application/json"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback never goes by a proxy
        try:
            with opener.open(request, timeout=TIMEOUT_S) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise _refusal(error) from error
        except OSError as error:
            hint = f"is it running? edgefleet coordinator serve {self._folder}"
            raise LinkError(f"the coordinator of {self._folder} does not answer at {self._url}; {hint}") from error


def _refusal(error: urllib.error.HTTPError) -> RefusedError:
    with error:
        try:
            problem = json.loads(error.read())
            return RefusedError(str(problem["code"]), str(problem["detail"]))
        except (ValueError, KeyError, TypeError):
            return RefusedError("internal", f"the coordinator answered {error.code}")
