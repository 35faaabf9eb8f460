"""Seven-bit weights as ONNX Runtime makes them, and the graph they are patched into."""

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fleet.errors import TrustError
from fleet.weights import Flat, Layout

FORMAT = 1
TOP = 64  # seven bits: vpmaddubsw on AVX2 adds two 8-bit products in 16 bits and saturates
Span = tuple[int, int]  # offset and length, in bytes
Arrays = dict[str, npt.NDArray[Any]]  # by name of the parameter


def channel_scales(weight: Flat, axis: int) -> Flat:
    """One scale a channel: ``absmax * 2 / 128`` in float64, then float32 ``(channels,)``; 1 where that is subnormal.

    ``onnxruntime.quantization.quant_utils.compute_scale_zp`` for ``reduce_range``, symmetric int8.
    """
    rest = tuple(i for i in range(weight.ndim) if i != axis)
    scales = np.abs(weight).max(axis=rest).astype(np.float64) * 2 / (2 * TOP)
    return np.where(scales < np.finfo(np.float32).tiny, 1.0, scales).astype(np.float32)


def widened_scales(scales: Flat, bias: Flat, input_scale: np.float32) -> Flat:
    """``scales``, larger where ``bias / (input_scale * scale)`` would not fit an int32; all float32 ``(channels,)``.

    ``QDQQuantizer._adjust_weight_scale_for_int32_bias``, in its mix of float32 and float64.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        smallest = np.float32(1.0001) * (np.float32(2) * np.abs(bias)) / np.float64(2**32 - 2)
        candidate = np.float64(input_scale) * scales.astype(np.float64)
        ratio = np.where((candidate < smallest) & (candidate > 0), smallest / candidate, 1.0)
        return (scales.astype(np.float64) * ratio).astype(np.float32)


def quantize_channels(weight: Flat, scales: Flat, axis: int) -> npt.NDArray[np.int8]:
    """``round(weight / scale)``, half to even, within ±64; the shape of ``weight``."""
    return np.clip(np.round(weight / _along(scales, axis, weight.ndim)), -TOP, TOP).astype(np.int8)


def quantize_bias(bias: Flat, scales: Flat) -> npt.NDArray[np.int32]:
    """``round(bias / scale)``, half to even, in float64, within int32; shape ``(channels,)``."""
    limits = np.iinfo(np.int32)
    steps = np.round(bias.astype(np.float64) / scales.astype(np.float64))
    return np.clip(steps, limits.min, limits.max).astype(np.int32)


def slice_of(span: Span) -> slice:
    """The bytes of ``span``."""
    return slice(span[0], span[0] + span[1])


def bias_scales(scales: Flat, input_scale: float) -> Flat:
    """The scales of a bias, ``input_scale * scales`` in float32, from those of its weight."""
    with np.errstate(over="ignore", under="ignore"):
        return np.float32(input_scale) * scales


@dataclass(frozen=True, slots=True)
class Weight:
    """Stored as int8, with a float32 scale for each channel along ``axis``."""

    axis: int
    values: Span
    scales: Span
    dtype: ClassVar[str] = "|i1"


@dataclass(frozen=True, slots=True)
class Bias:
    """Stored as int32; its scales are ``input_scale``, a float32, times those of the parameter ``weight``."""

    weight: str
    input_scale: float
    values: Span
    scales: Span
    dtype: ClassVar[str] = "<i4"


@dataclass(frozen=True, slots=True)
class Plain:
    """Stored as the float32 it is."""

    values: Span
    dtype: ClassVar[str] = "<f4"


Stored = Weight | Bias | Plain
KINDS: dict[str, Callable[..., Stored]] = {"weight": Weight, "bias": Bias, "plain": Plain}


def spans_of(stored: Stored) -> list[Span]:
    """The bytes of a parameter in the graph."""
    return [stored.values] if isinstance(stored, Plain) else [stored.values, stored.scales]


@dataclass(frozen=True)
class Template:
    """A quantized graph whose weights are patched in place, so that no base costs another export.

    ``quantize(dequantize(payload)) == payload`` for every payload that ``quantize`` made, as long as no bias is
    2**24 steps or more and no scale was widened for one (``widened_scales``).

    Attributes:
        layout: The parameters that training changes.
        plan: How each of them is stored, in the order of the layout; spans are offsets in ``graph``.
        graph: Serialized ONNX with zeros at every span, so that the digest depends on no weight.
    """

    layout: Layout
    plan: tuple[Stored, ...]
    graph: bytes

    def __post_init__(self) -> None:
        _check_plan(self.layout, self.plan)
        _check_spans(self.plan, self.graph)

    def quantize(self, weights: Flat) -> bytes:
        """The payload of float32 ``(layout.size,)``: all that changes from base to base, in plan order.

        A weight gives its int8 values, then its float32 scales; a bias its int32 values; a plain parameter its
        float32 values; all little-endian. The scales of a bias follow from the others and are left out.

        Raises:
            ValueError: Another length, not finite, or a scale beyond the range of float32.
        """
        if weights.dtype != np.float32 or not np.isfinite(weights).all():
            raise ValueError(f"weights are {weights.dtype} or hold NaN or infinite values; they must be finite float32")
        parameters = self.layout.unflatten(weights)
        scales = self._scales(parameters)
        pieces: list[npt.NDArray[Any]] = []
        for name, stored in self._stored.items():
            if isinstance(stored, Weight):
                pieces += [quantize_channels(parameters[name], scales[name], stored.axis), scales[name].astype("<f4")]
            elif isinstance(stored, Bias):
                pieces += [quantize_bias(parameters[name], scales[name]).astype(stored.dtype)]
            else:
                pieces += [parameters[name].astype(stored.dtype)]
        return b"".join(piece.tobytes() for piece in pieces)

    def artifact(self, payload: bytes) -> bytes:
        """The whole ONNX model: the graph with ``payload`` patched in.

        Raises:
            TrustError: The payload has another length, or holds what ``quantize`` never writes.
        """
        values, scales = self._read(payload)
        graph = bytearray(self.graph)
        for name, stored in self._stored.items():
            graph[slice_of(stored.values)] = values[name].tobytes()
            if not isinstance(stored, Plain):
                graph[slice_of(stored.scales)] = scales[name].astype("<f4").tobytes()
        return bytes(graph)

    def dequantize(self, payload: bytes) -> Flat:
        """The float32 weights, ``(layout.size,)``, that the artifact of ``payload`` computes with.

        Raises:
            TrustError: As for ``artifact``, or a weight leaves the range of float32.
        """
        values, scales = self._read(payload)
        for name, stored in self._stored.items():
            if not isinstance(stored, Plain):
                axis = stored.axis if isinstance(stored, Weight) else 0
                # int32 times float32 needs float64: 2**24 steps of a bias are more than a float32 counts
                values[name] = values[name] * _along(scales[name], axis, values[name].ndim).astype(np.float64)
            if np.abs(values[name]).max() > np.finfo(np.float32).max:
                raise TrustError(f"payload: {name} leaves the range of float32")
        return self.layout.flatten(values)

    @cached_property
    def payload_size(self) -> int:
        """Bytes of every payload."""
        return sum(s.values[1] + (s.scales[1] if isinstance(s, Weight) else 0) for s in self.plan)

    @cached_property
    def digest(self) -> str:
        """The sha256 of ``to_bytes()``, in hex."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """The wire form: length of the header (uint32, little-endian), canonical JSON header, graph."""
        kinds = {kind: word for word, kind in KINDS.items()}
        plan = [[kinds[type(s)], *(getattr(s, field) for field in s.__slots__)] for s in self.plan]
        values = {"format": FORMAT, "layout": self.layout.to_json(), "plan": plan}
        header = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        return struct.pack("<I", len(header)) + header + self.graph

    @classmethod
    def from_bytes(cls, data: bytes) -> "Template":
        """The inverse of ``to_bytes``, for bytes of any origin.

        Raises:
            TrustError: They are not exactly what ``to_bytes`` writes.
        """
        try:
            (length,) = struct.unpack_from("<I", data)
            header = json.loads(data[4 : 4 + length])
            plan = tuple(_stored(*entry) for entry in header["plan"])
            template = cls(Layout.from_json(header["layout"]), plan, data[4 + length :])
            canonical = template.to_bytes() == data
        except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError, struct.error) as error:
            raise TrustError(f"not a template: {error}") from error
        if not canonical:
            raise TrustError("not a template: the header is not in canonical form")
        return template

    @cached_property
    def _stored(self) -> dict[str, Stored]:
        return dict(zip(self.layout.names, self.plan, strict=True))

    def _scales(self, parameters: dict[str, Flat]) -> dict[str, Flat]:
        stored = self._stored.items()
        scales = {name: channel_scales(parameters[name], s.axis) for name, s in stored if isinstance(s, Weight)}
        for name, s in stored:
            if isinstance(s, Bias):
                wide = widened_scales(scales[s.weight], parameters[name], np.float32(s.input_scale))
                scales[s.weight], scales[name] = wide, bias_scales(wide, s.input_scale)
                if not np.isfinite(wide).all() or not scales[name].all():
                    raise ValueError(f"{name} and {s.weight} differ too much in size to be quantized together")
        return scales

    def _read(self, payload: bytes) -> tuple[Arrays, dict[str, Flat]]:
        if len(payload) != self.payload_size:
            raise TrustError(f"payload has {len(payload)} bytes, the template takes {self.payload_size}")
        values: Arrays = {}
        scales: dict[str, Flat] = {}
        start = 0
        for (name, stored), shape in zip(self._stored.items(), self.layout.shapes, strict=True):
            values[name] = np.frombuffer(payload, stored.dtype, prod(shape), start).reshape(shape)
            start += stored.values[1]
            if isinstance(stored, Weight):
                scales[name] = np.frombuffer(payload, "<f4", shape[stored.axis], start)
                start += stored.scales[1]
        for name, stored in self._stored.items():
            if isinstance(stored, Bias):
                scales[name] = bias_scales(scales[stored.weight], stored.input_scale)
        self._check_numbers(values, scales)
        return values, scales

    def _check_numbers(self, values: Arrays, scales: dict[str, Flat]) -> None:
        for name, stored in self._stored.items():
            numbers = values[name] if isinstance(stored, Plain) else scales[name]
            sound = np.isfinite(numbers).all() and (isinstance(stored, Plain) or numbers.min() > 0)
            if isinstance(stored, Weight):
                sound = sound and values[name].min() >= -TOP and values[name].max() <= TOP
            if not sound:
                raise TrustError(
                    f"payload: {name} is not finite, or not seven-bit, or has a scale that is not positive"
                )


def _along(scales: Flat, axis: int, ndim: int) -> Flat:
    return scales.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _stored(kind: str, *fields: Any) -> Stored:
    return KINDS[kind](*(tuple(field) if isinstance(field, list) else field for field in fields))


def _check_plan(layout: Layout, plan: tuple[Stored, ...]) -> None:
    """Refuse, with ValueError, a plan whose sizes are not those of the layout."""
    if len(set(layout.names)) != len(plan) or any(type(n) is not int or n < 1 for s in layout.shapes for n in s):
        raise ValueError("the plan and the layout name different parameters, or a shape is not positive")
    parameters = list(zip(layout.names, layout.shapes, plan, strict=True))
    weights = [(name, shape, stored.axis) for name, shape, stored in parameters if isinstance(stored, Weight)]
    channels = {n: shape[axis] for n, shape, axis in weights if type(axis) is int and 0 <= axis < len(shape)}
    for name, shape, stored in parameters:
        sizes = [prod(shape) * np.dtype(stored.dtype).itemsize]
        if isinstance(stored, Weight):
            sizes.append(4 * channels[name])
        elif isinstance(stored, Bias):
            sizes.append(4 * channels[stored.weight])
            scale = stored.input_scale
            exact = type(scale) is float and 0 < scale < np.inf and float(np.float32(scale)) == scale
            if shape != (channels[stored.weight],) or not exact:
                raise ValueError(f"{name}: shape {shape} or scale {scale} does not fit {stored.weight}")
        if [length for _, length in spans_of(stored)] != sizes:
            raise ValueError(f"{name}: spans {spans_of(stored)} should have {sizes} bytes")


def _check_spans(plan: tuple[Stored, ...], graph: bytes) -> None:
    """Refuse, with ValueError, spans that overlap, leave the graph, or are not zero there."""
    spans = sorted(span for stored in plan for span in spans_of(stored))
    ends = [0, *(offset + length for offset, length in spans)]
    if any(start < end for (start, _), end in zip(spans, ends, strict=False)) or ends[-1] > len(graph):
        raise ValueError("spans overlap or leave the graph")
    if any(any(graph[slice_of(span)]) for span in spans):
        raise ValueError("the graph is not zero where weights are patched in")
