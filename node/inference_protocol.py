"""The Open Inference Protocol, version 2, on bytes: JSON and its binary tensor data extension, without a network.

One input, float32, named by the task's signature; a batch of n readings is ``[n, *shape]``.
https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol and Triton's
``extension_binary_data``.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fleet.errors import InputError
from fleet.task import Signature

OUTPUTS = {"logits": "FP32", "label": "BYTES", "class": "INT64"}
LONGEST_ID = 256  # characters of a request id: it is stored with every reading
JSON = json.JSONEncoder(separators=(",", ":"), allow_nan=False)  # made once: that takes longer than using it


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output that was asked for, as bytes after the JSON or as JSON."""

    name: str
    binary: bool


@dataclass(frozen=True, slots=True)
class Question:
    """An inference request: readings ``x`` float32 ``(n, *shape)``; ``id`` is empty if the client gave none."""

    id: str
    x: npt.NDArray[np.float32]
    outputs: tuple[Wanted, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """An output on its way out: numbers of any shape, or strings ``(n,)``."""

    name: str
    shape: tuple[int, ...]
    data: npt.NDArray[np.float32] | npt.NDArray[np.int64] | Sequence[str]

    def to_bytes(self) -> bytes:
        """Little-endian and row-major; a string is its length in four bytes, then UTF-8."""
        if isinstance(self.data, np.ndarray):
            return self.data.astype(self.data.dtype.newbyteorder("<"), copy=False).tobytes()
        raw = [text.encode() for text in self.data]
        return b"".join(len(part).to_bytes(4, "little") + part for part in raw)

    def to_json(self) -> list[Any]:
        """The elements, row-major."""
        return self.data.ravel().tolist() if isinstance(self.data, np.ndarray) else list(self.data)


def decode(body: bytes, json_bytes: int | None, signature: Signature) -> Question:
    """An inference request.

    Args:
        json_bytes: How much of ``body`` is JSON, from ``Inference-Header-Content-Length``; None for all of it.

    Raises:
        InputError: Names the field that is wrong, and what it should be.
    """
    if json_bytes is not None and not 0 < json_bytes <= len(body):
        raise InputError(f"Inference-Header-Content-Length: {json_bytes}, the body has {len(body)} bytes")
    request = json_object(body[:json_bytes])
    entry = _only_input(request, signature)
    binary = memoryview(body)[len(body) if json_bytes is None else json_bytes :]
    return Question(request_id(request), _readings(entry, binary, signature), _wanted(request))


def encode(answer: dict[str, Any], tensors: Sequence[Tensor], wanted: Sequence[Wanted]) -> tuple[bytes, int | None]:
    """An inference response: the body, and how much of it is JSON if binary tensors follow.

    Args:
        answer: What stands beside ``outputs`` in the response: model_name, model_version, id, parameters.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    outputs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for one in wanted:
        tensor = by_name[one.name]
        entry: dict[str, Any] = {"name": one.name, "datatype": OUTPUTS[one.name], "shape": tensor.shape}
        if one.binary:
            parts.append(tensor.to_bytes())
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            entry["data"] = tensor.to_json()
        outputs.append(entry)
    head = JSON.encode({**answer, "outputs": outputs}).encode()
    return b"".join([head, *parts]), len(head) if parts else None


def json_object(data: bytes) -> dict[str, Any]:
    """A JSON object from a body.

    Raises:
        InputError: It is something else.
    """
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is not JSON in UTF-8: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"the body must be a JSON object, it is {_kind(value)}")
    return value


def request_id(request: dict[str, Any]) -> str:
    """The request's ``id``, empty if there is none.

    Raises:
        InputError: It cannot be stored and given back.
    """
    value = request.get("id", "")
    if not isinstance(value, str) or len(value) > LONGEST_ID or not _is_text(value):
        raise InputError(f"id: must be a string of at most {LONGEST_ID} characters")
    return value


def _is_text(value: str) -> bool:
    return value.isascii() or not any(0xD800 <= ord(letter) <= 0xDFFF for letter in value)  # half of a pair


def _only_input(request: dict[str, Any], signature: Signature) -> dict[str, Any]:
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise InputError(f"inputs: must be a list of one tensor, {signature.input!r}")
    entry: dict[str, Any] = inputs[0]
    if entry.get("name") != signature.input:
        raise InputError(f"inputs[0].name: {_short(entry.get('name'))}, the task takes {signature.input!r}")
    if entry.get("datatype") != "FP32":
        raise InputError(f"inputs[0].datatype: {_short(entry.get('datatype'))}, the task takes 'FP32'")
    return entry


def _readings(entry: dict[str, Any], binary: memoryview, signature: Signature) -> npt.NDArray[np.float32]:
    shape = _shape(entry.get("shape"), signature)
    parameters = _parameters(entry, "inputs[0]")
    if "binary_data_size" in parameters:
        flat = _from_bytes(parameters["binary_data_size"], binary, shape, "data" in entry)
    elif len(binary):
        raise InputError(f"inputs[0].parameters.binary_data_size: missing, {len(binary)} bytes follow the JSON")
    else:
        flat = _from_json(entry.get("data"))
    if flat.size != _size(shape):
        raise InputError(f"inputs[0].data: {flat.size} values, the shape {list(shape)} has {_size(shape)}")
    if not np.isfinite(flat).all():
        raise InputError("inputs[0].data: NaN, infinite or beyond float32")
    return flat.reshape(shape)


def _shape(value: Any, signature: Signature) -> tuple[int, ...]:
    wish = ["n", *signature.shape]
    if not isinstance(value, list) or not all(type(size) is int for size in value):
        raise InputError(f"inputs[0].shape: must be a list of integers, the task takes {wish}")
    if tuple(value[1:]) != signature.shape or not 1 <= value[0] < 2**31:
        raise InputError(f"inputs[0].shape: {_short(value)}, the task takes {wish} with n of 1 or more")
    return tuple(value)


def _from_bytes(size: Any, binary: memoryview, shape: tuple[int, ...], twice: bool) -> npt.NDArray[np.float32]:
    if twice:
        raise InputError("inputs[0].data: given beside binary_data_size, leave one of them out")
    if type(size) is not int or size != 4 * _size(shape):
        where = "inputs[0].parameters.binary_data_size"
        raise InputError(f"{where}: {_short(size)}, the shape {list(shape)} of FP32 takes {4 * _size(shape)}")
    if size != len(binary):
        raise InputError(f"inputs[0].parameters.binary_data_size: {size}, but {len(binary)} bytes follow the JSON")
    return np.frombuffer(binary, "<f4").astype(np.float32)  # a copy: aligned, and without the body behind it


def _from_json(data: Any) -> npt.NDArray[np.float32]:
    if not isinstance(data, list):
        raise InputError("inputs[0].data: must be a list of numbers, nested or flat")
    try:
        flat = np.array(data, dtype=object).ravel()
        kinds = set(map(type, flat))
        if not kinds <= {int, float}:
            raise ValueError("it holds something that is no number, or rows of different lengths")
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused as such
            return flat.astype(np.float32)
    except (ValueError, OverflowError) as error:
        raise InputError(f"inputs[0].data: must be numbers: {error}") from error


def _wanted(request: dict[str, Any]) -> tuple[Wanted, ...]:
    default = _flag(_parameters(request, "the request"), "binary_data_output", False, "parameters")
    asked = request.get("outputs") or [{"name": name} for name in OUTPUTS]
    if not isinstance(asked, list) or not all(isinstance(entry, dict) for entry in asked):
        raise InputError("outputs: must be a list of objects")
    return tuple(_wish(entry, f"outputs[{i}]", default) for i, entry in enumerate(asked))


def _wish(entry: dict[str, Any], where: str, default: bool) -> Wanted:
    name = entry.get("name")
    if not isinstance(name, str) or name not in OUTPUTS:
        raise InputError(f"{where}.name: {_short(name)}, there are {', '.join(OUTPUTS)}")
    parameters = _parameters(entry, where)
    if parameters.keys() & {"classification", "shared_memory_region"}:
        raise InputError(f"{where}.parameters: classification and shared memory are not offered; ask for 'label'")
    return Wanted(name, _flag(parameters, "binary_data", default, f"{where}.parameters"))


def _parameters(entry: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InputError(f"{where}.parameters: must be an object")
    if "shared_memory_region" in parameters:
        raise InputError(f"{where}.parameters.shared_memory_region: not offered, send the data")
    return parameters


def _flag(parameters: dict[str, Any], name: str, default: bool, where: str) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InputError(f"{where}.{name}: must be true or false")
    return value


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kind(value: Any) -> str:
    return {list: "a list", str: "a string", type(None): "null"}.get(type(value), "a number or a truth value")
