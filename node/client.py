"""A client of a node's local API, for programs on the same device.

client = Client("unix:/run/edgefleet.sock")     # or "http://127.0.0.1:8000"
answer = client.infer(x)                        # Answer(id=..., label="ROW", index=6, logits=..., release=3)
client.label(answer.id, "PEN")                  # when the truth is known
"""

import json
import socket
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fleet.errors import InputError, LinkError
from node.address import parse

_JSON_BYTES = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the node says of one reading. ``id`` is for the label, ``release`` is who answered."""

    id: str
    label: str
    index: int
    logits: npt.NDArray[np.float32]
    release: int


class Client:
    """One connection, kept open; for one thread at a time."""

    def __init__(self, where: str, *, timeout_s: float = 10.0) -> None:
        """Ask the node at ``where`` what it takes.

        Raises:
            LinkError: Nobody answers there, or only with an error of its own.
            UsageError: That is no address on this device.
        """
        place = parse(where)
        self._http = (
            _UnixConnection(place, timeout_s)
            if isinstance(place, Path)
            else HTTPConnection(place.host, place.number, timeout=timeout_s)
        )
        try:
            (self.model,) = self._json("GET", "/v2")["models"]
            metadata = self._json("GET", f"/v2/models/{self.model}")
            self._input = metadata["inputs"][0]["name"]
            self.shape: tuple[int, ...] = tuple(metadata["inputs"][0]["shape"][1:])
        except (LookupError, TypeError, ValueError) as error:
            self.close()
            raise LinkError(f"what answers at {where} is no node") from error

    def infer(self, x: npt.NDArray[np.float32], id: str = "") -> Answer:  # noqa: A002 - as the protocol calls it
        """The answer to one reading, float32 in the task's shape.

        Raises:
            InputError: The node refuses the reading; the message says why.
            LinkError: It does not answer.
        """
        data = np.ascontiguousarray(x, "<f4").tobytes()
        tensor = {
            "name": self._input,
            "datatype": "FP32",
            "shape": [1, *x.shape],
            "parameters": {"binary_data_size": len(data)},
        }
        question = {"inputs": [tensor], **({"id": id} if id else {})}
        head = json.dumps(question).encode()
        said = self._json("POST", f"/v2/models/{self.model}/infer", head + data, {_JSON_BYTES: str(len(head))})
        outputs = {output["name"]: output["data"] for output in said["outputs"]}
        logits = np.array(outputs["logits"], np.float32)
        return Answer(said["id"], outputs["label"][0], outputs["class"][0], logits, said["parameters"]["release"])

    def label(self, id: str, label: str | int) -> int:  # noqa: A002 - as the protocol calls it
        """The truth about an earlier answer: the name or the index of a class. The first one counts, and gives 1.

        Raises:
            InputError: The node knows no such answer or class.
            LinkError: It does not answer, or cannot store the label now.
        """
        body = json.dumps({"id": id, "label": label}).encode()
        return int(self._json("POST", f"/v2/models/{self.model}/labels", body)["labelled"])

    def close(self) -> None:
        """Let go of the connection."""
        self._http.close()

    def _json(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Any:
        kept = self._http.sock is not None
        try:
            status, said = self._exchange(method, path, body, headers or {})
        except ConnectionError as error:
            if not kept:
                raise LinkError(f"the node does not answer: {error}") from error
            return self._json(method, path, body, headers)  # it closed the idle connection, or was started again
        except (OSError, HTTPException, ValueError) as error:
            raise LinkError(f"the node does not answer: {error or type(error).__name__}") from error
        if status >= 500:
            raise LinkError(said["error"])
        if status >= 400:
            raise InputError(said["error"])
        return said

    def _exchange(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
        try:
            self._http.request(method, path, body, headers)
            response = self._http.getresponse()
            return response.status, json.loads(response.read())
        except BaseException:
            self._http.close()
            raise


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
