"""Public inputs whose answers, signed as a hash, show a node that it computes what the coordinator computed."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from coordinator.ranges import SHAPE_ONLY
from fleet.artifact import open_session
from fleet.errors import TaskError
from fleet.task import Signature

Float32 = npt.NDArray[np.float32]

MARGIN = 1e-3  # of a quantization step; float32 sums in another order differ by about 1e-6
ATTEMPTS = 256
EXACT = SHAPE_ONLY | {"Clip", "Concat", "Gather", "Max", "Min", "Relu", "Slice", "TopK"}  # the same bits everywhere
INTEGER = frozenset({"Conv", "Gemm", "MatMul", "AveragePool", "GlobalAveragePool"})  # with quantized inputs


def golden_inputs(artifact: bytes, signature: Signature, count: int = 16, seed: int = 0) -> Float32:
    """Seeded inputs inside the signature's range: float32 ``(count, *signature.shape)``.

    A value that was computed in float32 and is then quantized may round to the other side on another processor.
    For these inputs every such value is at least ``MARGIN`` of a step away from a tie.

    Raises:
        TaskError: Too few candidates keep that distance.
    """
    rng = np.random.default_rng(seed)
    watched = _watched(onnx.load_from_string(artifact))
    if not watched:
        return _signals(rng, signature, count)
    session = open_session(_exposing(artifact, watched))
    kept = np.zeros((0, *signature.shape), np.float32)
    for _ in range(ATTEMPTS):
        candidates = _signals(rng, signature, count)
        values = session.run([tensor.name for tensor in watched], {signature.input: candidates})
        distances = [tensor.tie_distance(value) for tensor, value in zip(watched, values, strict=True)]
        kept = np.concatenate([kept, candidates[np.min(distances, axis=0) >= MARGIN]])
        if len(kept) >= count:
            return kept[:count]
    raise TaskError(
        f"{len(kept)} of {ATTEMPTS * count} golden inputs stay {MARGIN} of a step from a rounding tie, {count} are "
        "needed: let fewer float32 values enter the quantized layers, or pool an odd number of them"
    )


@dataclass(frozen=True, slots=True)
class _Watched:
    """A tensor that is computed in float32 and then quantized with ``scale``; ``bounds`` are where a Clip stops it."""

    name: str
    scale: float
    bounds: tuple[float, ...]

    def tie_distance(self, values: Float32) -> npt.NDArray[np.float64]:
        """For each example the distance, in steps, of its nearest value to a tie: ``(n,)``. A bound is no accident."""
        steps = values.astype(np.float64) / self.scale
        distances = np.where(np.isin(values, self.bounds), 0.5, np.abs(steps - np.floor(steps) - 0.5))
        nearest: npt.NDArray[np.float64] = distances.reshape(len(values), -1).min(axis=1)
        return nearest


def _signals(rng: np.random.Generator, signature: Signature, count: int) -> Float32:
    """A few slow waves along the last axis, under noise of any strength: most real readings are both."""
    *front, length = signature.shape
    each, whole = (3, count, *front, 1), (count, *[1] * len(signature.shape))
    cycles = rng.uniform(0.2, 12, each) * np.linspace(0, 1, length) + rng.uniform(0, 1, each)
    waves = (rng.normal(size=each) * np.sin(2 * np.pi * cycles)).sum(axis=0)
    noise = rng.uniform(0, 1, whole) * rng.normal(size=(count, *signature.shape))
    strength = rng.uniform(0.05, 0.5, whole) * (signature.high - signature.low) / 2
    values = (signature.high + signature.low) / 2 + strength * (waves + noise)
    return np.asarray(np.clip(values, signature.low, signature.high), dtype=np.float32)


def _watched(model: onnx.ModelProto) -> list[_Watched]:
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    watched = []
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and _is_inexact(node.input[0], producers):
            clip = producers[node.input[0]]
            while clip.op_type in EXACT - {"Clip"} and clip.input[0] in producers:
                clip = producers[clip.input[0]]
            limits = clip.input[1:] if clip.op_type == "Clip" else []
            bounds = tuple(float(constants[name]) for name in limits if name)
            watched.append(_Watched(node.input[0], float(constants[node.input[1]]), bounds))
    return watched


def _is_inexact(name: str, producers: dict[str, onnx.NodeProto]) -> bool:
    node = producers.get(name)
    if node is None or node.op_type == "DequantizeLinear":
        return False
    if node.op_type in INTEGER and _is_integer(node, producers):
        return False
    return node.op_type not in EXACT or any(_is_inexact(each, producers) for each in node.input)


def _is_integer(node: onnx.NodeProto, producers: dict[str, onnx.NodeProto]) -> bool:
    return all(name in producers and producers[name].op_type == "DequantizeLinear" for name in node.input)


def _exposing(artifact: bytes, tensors: list[_Watched]) -> bytes:
    model = onnx.load_from_string(artifact)
    for tensor in tensors:
        info = onnx.helper.make_tensor_value_info(tensor.name, onnx.TensorProto.FLOAT, None)
        model.graph.output.append(info)
    data: bytes = model.SerializeToString()
    return data
