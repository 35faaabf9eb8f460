"""Turns a task into a template: exported once, quantized once, and proved to be patched exactly.

The only module that speaks with the quantizer of ONNX Runtime.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from coordinator.exporter import canonical, export, quiet
from coordinator.ranges import Range, Ranges
from fleet.errors import TaskError
from fleet.garbage import unsearched
from fleet.quantization import Bias, Plain, Span, Stored, Template, Weight, slice_of, spans_of
from fleet.task import Task, layout_of
from fleet.weights import Flat, Layout

QUANTIZED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class Registration:
    """A template that was proved exact, and what its author should know: one line each."""

    template: Template
    warnings: tuple[str, ...]


@unsearched()
def register(task: Task, weights: Flat, proof: Callable[[], bytes | None] = lambda: None) -> Registration:
    """Export, quantize and check a task once; ``weights`` are float32 ``(layout.size,)``.

    Afterwards ``template.artifact(template.quantize(w)) == fresh(task, w)``, byte for byte; this is checked for
    ``weights`` and for a random vector of mixed sizes. ``proof`` may have what ``proof_of`` gives from another
    process; where it has nothing, or something else than the template makes, it is found here.

    Raises:
        TaskError: The model cannot be exported, quantized, or patched exactly; says which and what to do.
    """
    model, layout = export(task, weights)
    artifact = quantize_model(model, layout, task)
    template = _template(artifact, layout)
    _check(template, weights, artifact)
    probe = _probe(layout)
    if proof() != template.artifact(template.quantize(probe)):
        _check(template, probe, proof_of(task))
    return Registration(template, _plan(model, layout, task).warnings)


@unsearched()
def proof_of(task: Task) -> bytes:
    """The artifact of random weights of mixed sizes, the slow way: an exact template makes the same of them.

    Raises:
        TaskError: As for ``register``.
    """
    return fresh(task, _probe(layout_of(task.model())))


def _probe(layout: Layout) -> Flat:
    rng = np.random.default_rng(0)
    probe: Flat = (0.2 * rng.lognormal(0, 2, layout.size) * rng.normal(size=layout.size)).astype(np.float32)
    return probe


def fresh(task: Task, weights: Flat) -> bytes:
    """The artifact of float32 ``(layout.size,)`` the slow way: exported and quantized anew.

    Raises:
        TaskError: As for ``register``.
    """
    model, layout = export(task, weights)
    return quantize_model(model, layout, task)


def quantize_model(model: onnx.ModelProto, layout: Layout, task: Task) -> bytes:
    """The artifact of an exported model, by ``onnxruntime.quantization.quantize_static`` with fixed ranges.

    Raises:
        TaskError: Nothing can be quantized, or a parameter is shared.
    """
    plan = _plan(model, layout, task)
    quantized = _quantize_static(model, plan)
    for tensor in plan.float_outputs:
        _drop_pair(quantized.graph, tensor)
    for name in plan.weight_only:
        _quantize_weight(quantized.graph, _node(quantized.graph, name))
    return canonical(quantized)


def _check(template: Template, weights: Flat, expected: bytes) -> None:
    if template.artifact(template.quantize(weights)) != expected:
        raise TaskError(
            "refused: patching the template is not the same as exporting anew; is a constant of the model random, "
            "or the bias frozen of a layer whose weight is trained?"
        )


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which nodes compute in integers, which only have their weight stored as int8, and the activations' ranges."""

    integer: tuple[str, ...]
    weight_only: tuple[str, ...]
    ranges: dict[str, Range]
    float_outputs: frozenset[str]
    warnings: tuple[str, ...]


def _plan(model: onnx.ModelProto, layout: Layout, task: Task) -> _Plan:
    graph, parameters = model.graph, set(layout.names)
    known = Ranges(graph, parameters, task.signature.low, task.signature.high)
    integer, weight_only, lines, float_outputs = [], [], [], set()
    ranges: dict[str, Range] = {}
    for node in graph.node:
        if node.op_type not in QUANTIZED or node.input[1] not in parameters:
            continue
        _check_unshared(node, known, parameters)
        _check_channels(node, layout)
        before, after = known.of(node.input[0]), known.needed(node.output[0])
        if before is None or (after is None and not _may_leave_float(node, graph)):
            weight_only.append(node.name)
            lines.append(_advice(node, "after" if before is not None else "before"))
            continue
        integer.append(node.name)
        ranges[node.input[0]] = before
        ranges[node.output[0]] = after or (-1.0, 1.0)  # a placeholder: quantize_static wants one
        clip = known.removable_clip(node.output[0])
        if after is None:
            float_outputs.add(node.output[0])
        elif clip is not None:
            integer.append(clip.name)
            ranges[clip.output[0]] = after
    if not integer and not weight_only:
        raise TaskError(f"{task.name}: no Conv or Linear layer with trainable weights, so nothing to quantize")
    return _Plan(tuple(integer), tuple(weight_only), ranges, frozenset(float_outputs), tuple(lines))


def _may_leave_float(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    """Whether ONNX Runtime computes ``node`` in integers though nothing quantizes its output."""
    return node.op_type != "Conv" and node.output[0] == graph.output[0].name


def _advice(node: onnx.NodeProto, side: str) -> str:
    return (
        f"{node.input[1]}: the range {side} this {node.op_type} is unbounded, so it computes in float32, slower and "
        f"not to the same bit on every processor; put Hardtanh {side} it"
    )


def _check_unshared(node: onnx.NodeProto, known: Ranges, parameters: set[str]) -> None:
    for name in node.input[1:]:
        if name in parameters and len(known.readers(name)) != 1:
            raise TaskError(f"parameter {name} is shared by {len(known.readers(name))} layers; give each its own")


def _check_channels(node: onnx.NodeProto, layout: Layout) -> None:
    name, shape = node.input[1], layout.shapes[layout.names.index(node.input[1])]
    if len(shape) < 2:
        raise TaskError(f"parameter {name} is multiplied as a vector: give it the shape {(*shape, 1)}, or use Linear")


def _quantize_static(model: onnx.ModelProto, plan: _Plan) -> onnx.ModelProto:
    from onnxruntime import quantization
    from onnxruntime.quantization import calibrate

    ranges = {
        name: calibrate.TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in plan.ranges.items()
    }
    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    if not plan.integer:  # it takes an empty list of nodes for all of them
        return prepared
    onnx.helper.set_model_props(prepared, {"onnx.quant.pre_process": "onnxruntime.quant"})  # or it warns
    with tempfile.TemporaryDirectory() as folder, quiet():
        cache, output = Path(folder) / "ranges.json", Path(folder) / "quantized.onnx"
        calibrate.save_tensors_data(calibrate.TensorsData(quantization.CalibrationMethod.MinMax, ranges), cache)
        quantization.quantize_static(
            prepared,
            output,
            None,
            calibration_cache_path=cache,
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=[*QUANTIZED, "Clip"],
            nodes_to_quantize=list(plan.integer),
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return onnx.load(output)


def _drop_pair(graph: onnx.GraphProto, tensor: str) -> None:
    """Take out the quantizer and dequantizer of ``tensor``: what leaves its node stays float32."""
    quantizer, dequantizer = (_node(graph, f"{tensor}_{op}Linear") for op in ("Quantize", "Dequantize"))
    made, read = quantizer.input[0], dequantizer.output[0]
    graph.node.remove(quantizer)
    graph.node.remove(dequantizer)
    for node in graph.node:
        node.output[:] = [tensor if name == made else name for name in node.output]
        node.input[:] = [tensor if name in (made, read) else name for name in node.input]


def _quantize_weight(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    """Store the weight of ``node`` as int8, as ``quantize_static`` would, and let the node compute in float32."""
    from onnxruntime.quantization import quant_utils

    name, axis = node.input[1], _channel_axis(node)
    weight = next(i for i in graph.initializer if i.name == name)
    channels = np.moveaxis(numpy_helper.to_array(weight), axis, 0)
    found = [
        quant_utils.compute_data_quant_params(channel.ravel(), TensorProto.INT8, symmetric=True, reduce_range=True)
        for channel in channels
    ]
    zeros, scales = (np.array(column) for column in zip(*found, strict=True))
    quantized = quant_utils.quantize_onnx_initializer(weight, TensorProto.INT8, zeros, scales, axis)
    inputs = [quantized.name, f"{name}_scale", f"{name}_zero_point"]
    graph.initializer.extend([quantized, *map(numpy_helper.from_array, (scales, zeros), inputs[1:])])
    node.input[1] = f"{name}_DequantizeLinear_Output"
    dequantizer = onnx.helper.make_node(
        "DequantizeLinear", inputs, [node.input[1]], f"{name}_DequantizeLinear", axis=axis
    )
    graph.node.insert(0, dequantizer)


def _channel_axis(node: onnx.NodeProto) -> int:
    """The axis of the weight of ``node`` that its outputs lie along."""
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return 0 if node.op_type == "Conv" else 1


def _node(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(node for node in graph.node if node.name == name)
    return found


def _template(artifact: bytes, layout: Layout) -> Template:
    model = onnx.load_from_string(artifact)
    places = {i.name: _place(artifact, i) for i in model.graph.initializer}
    plan = tuple(_stored(model.graph, name, places) for name in layout.names)
    graph = bytearray(artifact)
    for stored in plan:
        for span in spans_of(stored):
            graph[slice_of(span)] = bytes(span[1])
    return Template(layout, plan, bytes(graph))


def _place(artifact: bytes, initializer: onnx.TensorProto) -> Span:
    """Where the data of ``initializer`` lies: at the end of its message, which its name makes unique."""
    message = initializer.SerializeToString(deterministic=True)
    length = len(initializer.raw_data)
    if artifact.count(message) != 1 or not message.endswith(initializer.raw_data):
        raise TaskError(f"refused: {initializer.name} cannot be told apart in the exported graph")
    return artifact.index(message) + len(message) - length, length


def _stored(graph: onnx.GraphProto, name: str, places: dict[str, Span]) -> Stored:
    producers = {output: node for node in graph.node for output in node.output}
    initializers = {i.name: i for i in graph.initializer}
    if name in places:
        return Plain(places[name])
    dequantizer = next(node for node in graph.node if node.input[0] == f"{name}_quantized")
    values, scales = places[dequantizer.input[0]], places[dequantizer.input[1]]
    reader = next(node for node in graph.node if dequantizer.output[0] in node.input)
    if initializers[dequantizer.input[0]].data_type == TensorProto.INT8:
        return Weight(_channel_axis(reader), values, scales)
    before, weight = producers[reader.input[0]], producers[reader.input[1]]
    input_scale = float(numpy_helper.to_array(initializers[before.input[1]]))
    return Bias(weight.input[0].removesuffix("_quantized"), input_scale, values, scales)
