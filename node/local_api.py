"""The node's API for programs on the same device: the Open Inference Protocol, labels, and what is counted."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from fleet.errors import InputError, StoreError, TrustError
from fleet.events import Record, ignore
from node import inference_protocol as protocol
from node.address import is_loopback
from node.desk import Desk, Reply
from node.http_message import HttpError, Request, Response, number
from node.inference_protocol import Tensor
from node.metrics import KIND, Gauge

_JSON_BYTES = "inference-header-content-length"


class LocalApi:
    """Routes requests to the desk. It is an ``Application`` of ``node.http_server``."""

    def __init__(
        self,
        desk: Desk,
        model: str,
        *,
        version: str,
        gauges: Callable[[], Iterable[Gauge]] = tuple,
        record: Record = ignore,
    ) -> None:
        """Serve ``desk`` under the name ``model``: the task's.

        Args:
            version: Of this distribution: looking it up takes 3 MB, so the command line does, before it is gone.
            gauges: What ``/metrics`` says beside what the desk counts (``node.gauges.NodeGauges.read``).
        """
        self._desk = desk
        self._model = model
        self._version = version
        self._gauges = gauges
        self._record = record
        self._places: dict[tuple[str, ...], tuple[str, Callable[[Request], Response]]] = {
            ("metrics",): ("GET", self._metrics),
            ("v2",): ("GET", self._server),
            ("v2", "health", "live"): ("GET", lambda _: _json({"live": True})),
            ("v2", "health", "ready"): ("GET", lambda _: _json({"ready": self._ready(None)})),
            ("v2", "models", model, "labels"): ("POST", self._labels),
        }

    def answer(self, request: Request) -> Response:
        """The response to a request, whatever is wrong with it."""
        try:
            _check_source(request)
            return self._route(request)
        except HttpError as error:
            return self.refuse(error)
        except InputError as error:
            return self.refuse(HttpError(400, str(error)))
        except (TrustError, StoreError) as error:
            return self.refuse(HttpError(503, str(error), ("Retry-After", "1")))
        except Exception as error:  # noqa: BLE001 - a fault of ours must not end the thread of a client
            self._record("failed", path=request.path, reason=repr(error))
            return self.refuse(HttpError(500, "a fault of the node, see its events"))

    def refuse(self, error: HttpError) -> Response:
        """An error as the protocol wants it, counted."""
        self._desk.metrics.refuse(error.status)
        return _json({"error": str(error)}, error.status, *error.headers)

    def _route(self, request: Request) -> Response:
        parts = tuple(request.path.strip("/").split("/"))
        method, handle = self._places.get(parts) or self._of_model(parts)
        if request.method != method and not (request.method == "HEAD" and method == "GET"):
            raise HttpError(405, f"{request.path} takes {method}, not {request.method}", ("Allow", method))
        return handle(request)

    def _of_model(self, parts: tuple[str, ...]) -> tuple[str, Callable[[Request], Response]]:
        """``v2/models/NAME[/versions/N][/ready|/infer]``."""
        if parts[:2] != ("v2", "models") or len(parts) < 3:
            raise HttpError(404, "no such path: there are /v2, /v2/health, /v2/models and /metrics")
        if parts[2] != self._model:
            raise HttpError(404, f"there is no model {parts[2]!r} here, only {self._model!r}")
        wish, rest = (parts[4], parts[5:]) if parts[3:4] == ("versions",) and len(parts) > 4 else (None, parts[3:])
        handlers: dict[tuple[str, ...], tuple[str, Callable[[Request], Response]]] = {
            (): ("GET", lambda _: self._metadata(wish)),
            ("ready",): ("GET", lambda _: _json({"name": self._model, "ready": self._ready(wish)})),
            ("infer",): ("POST", lambda request: self._infer(request, wish)),
        }
        if rest not in handlers:
            raise HttpError(404, f"no such path: a model has /{' and /'.join(['ready', 'infer', 'labels'])}")
        return handlers[rest]

    def _server(self, _: Request) -> Response:
        extensions = ["binary_tensor_data", "labels"]
        return _json({"name": "edgefleet", "version": self._version, "extensions": extensions, "models": [self._model]})

    def _ready(self, wish: str | None) -> bool:
        active = self._desk.active
        if active is None:
            raise HttpError(503, "this node has no release to answer with yet", ("Retry-After", "1"))
        _check_version(wish, active.release)
        return True

    def _metadata(self, wish: str | None) -> Response:
        signature, active = self._desk.signature, self._desk.active
        versions = [str(active.release)] if active else []
        if wish is not None and wish not in versions:
            raise HttpError(404, f"release {wish} does not answer here now")
        shapes = {"logits": [-1, len(signature.classes)], "label": [-1], "class": [-1]}
        outputs = [
            {"name": name, "datatype": datatype, "shape": shapes[name]} for name, datatype in protocol.OUTPUTS.items()
        ]
        return _json(
            {
                "name": self._model,
                "versions": versions,
                "platform": "onnxruntime_onnx",
                "inputs": [{"name": signature.input, "datatype": "FP32", "shape": [-1, *signature.shape]}],
                "outputs": outputs,
                "parameters": {"classes": signature.classes, "low": signature.low, "high": signature.high},
            }
        )

    def _infer(self, request: Request, wish: str | None) -> Response:
        active = self._desk.active
        if wish is not None and active is not None:
            _check_version(wish, active.release)
        question = protocol.decode(request.body, number(request.headers, _JSON_BYTES), self._desk.signature)
        reply = self._desk.answer(question.x, question.id, active)
        answer = {
            "model_name": self._model,
            "model_version": str(reply.release),
            "id": reply.id,
            "parameters": {"release": reply.release, "recorded": reply.recorded},
        }
        body, json_bytes = protocol.encode(answer, self._tensors(reply), question.outputs)
        if json_bytes is None:
            return Response(200, body)
        return Response(200, body, "application/octet-stream", (("Inference-Header-Content-Length", str(json_bytes)),))

    def _tensors(self, reply: Reply) -> list[Tensor]:
        classes, n = self._desk.signature.classes, len(reply.answers)
        logits = np.array([one.logits for one in reply.answers])
        labels = [one.label for one in reply.answers]
        return [
            Tensor("logits", logits.shape, logits),
            Tensor("label", (n,), [classes[label] for label in labels]),
            Tensor("class", (n,), np.array(labels, np.int64)),
        ]

    def _labels(self, request: Request) -> Response:
        fields = protocol.json_object(request.body)
        name = protocol.request_id(fields)
        if not name:
            raise InputError("id: missing, the request id that the answer came with")
        if ("label" in fields) == ("labels" in fields):
            raise InputError("label: give one for a reading, or labels, a list for a batch")
        labels = fields["labels"] if "labels" in fields else [fields["label"]]
        if not isinstance(labels, list) or not labels:
            raise InputError("labels: must be a list of class names or indices")
        new = self._desk.teach(name, [self._class(label) for label in labels])
        return _json({"id": name, "labelled": new})

    def _class(self, label: Any) -> int:
        """The index of a class from its name or its index."""
        classes = self._desk.signature.classes
        if isinstance(label, str) and label in classes:
            return classes.index(label)
        if type(label) is int and 0 <= label < len(classes):
            return label
        raise InputError(f"label: {str(label)[:60]!r} is no class: {', '.join(classes)}, or 0 to {len(classes) - 1}")

    def _metrics(self, _: Request) -> Response:
        return Response(200, self._desk.metrics.text(self._gauges()).encode(), KIND)


def _check_source(request: Request) -> None:
    """Web pages open on this device must not label readings: browsers name the page, or the host it believes in."""
    if "origin" in request.headers:
        raise HttpError(403, "Origin: this API is not for web pages")
    host = request.headers.get("host", "").rpartition("@")[2]
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    if name and not is_loopback(name):
        raise HttpError(403, "Host: this API is only for programs on this device, as localhost")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HttpError(415, "Content-Encoding: not offered, send the body as it is")


def _check_version(wish: str | None, release: int) -> None:
    if wish is not None and wish != str(release):
        raise HttpError(404, f"release {wish[:20]} does not answer here now, release {release} does")


def _json(value: Mapping[str, Any], status: int = 200, *headers: tuple[str, str]) -> Response:
    return Response(status, protocol.JSON.encode(value).encode(), headers=headers)
