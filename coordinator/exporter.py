"""A task's model as ONNX: exported once, with its input clipped, and stripped of what says who made it and where."""

import io
import logging
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper

from fleet.errors import TaskError
from fleet.finding import said
from fleet.task import Task, layout_of, set_weights
from fleet.weights import Flat, Layout

if TYPE_CHECKING:
    import torch

OPSET = 18
OUTPUT = "logits"


def export(task: Task, weights: Flat) -> tuple[onnx.ModelProto, Layout]:
    """The float32 model of ``weights``, ``(layout.size,)``; every parameter is an initializer of its own name.

    The exporter sees random weights, other ones each time, and the real ones are put in afterwards: it would merge
    parameters that are equal, as biases that start at zero are, and fold into a constant what it takes for one.

    Raises:
        TaskError: The model cannot be exported, or the exporter changed a parameter.
    """
    module = task.model().eval()
    layout = layout_of(module)
    stand_in = np.random.default_rng(zlib.crc32(weights.tobytes())).normal(size=layout.size).astype(np.float32)
    set_weights(module, stand_in)
    try:
        model = _run_exporter(module, task)
    except Exception as error:  # it runs the author's code, which may raise anything
        raise TaskError(f"{task.name}: torch.onnx cannot export the model: {_why(error)}") from error
    _check_parameters(model.graph, layout, stand_in)
    write_parameters(model.graph, layout, weights)
    clip_input(model.graph, task.signature.low, task.signature.high)
    return model, layout


def write_parameters(graph: onnx.GraphProto, layout: Layout, weights: Flat) -> None:
    """Replace the parameters of an exported graph by ``weights``, float32 ``(layout.size,)``."""
    values = layout.unflatten(weights)
    for initializer in graph.initializer:
        if initializer.name in values:
            initializer.CopyFrom(numpy_helper.from_array(values[initializer.name], initializer.name))


def _run_exporter(module: "torch.nn.Module", task: Task) -> onnx.ModelProto:
    import torch

    example = torch.zeros(2, *task.signature.shape)  # two, because the exporter takes a batch of one for a constant
    with quiet():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[task.signature.input],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
    assert program is not None  # noqa: S101 - so it is with dynamo=True
    model: onnx.ModelProto = program.model_proto
    return model


def _why(error: Exception) -> str:
    """What the exporter failed at, in a line; where in the task's code, if a reading decides which way it goes."""
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    if type(cause).__name__ != "GuardOnDataDependentSymNode":
        return said(cause)
    place = re.search(r'File "([^"]+)", line (\d+)', str(cause))
    where = f" at {Path(place[1]).name}, line {place[2]}" if place else ""
    return f"its way depends on the values of a reading{where}: use torch.where in place of if"


@contextmanager
def quiet() -> Iterator[None]:
    """Within it, nothing is logged or warned of, and torch does not print graphs: what fails there is raised."""
    before = logging.root.manager.disable
    silence = logging.NullHandler()  # ONNX Runtime calls logging.info(), which sets up a root logger without a handler
    logging.getLogger().addHandler(silence)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        logging.getLogger().removeHandler(silence)


def _check_parameters(graph: onnx.GraphProto, layout: Layout, weights: Flat) -> None:
    """Refuse a graph that holds a parameter otherwise than as it is."""
    initializers = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    for name, value in layout.unflatten(weights).items():
        found = initializers.get(name)
        if found is None or found.dtype != np.float32 or not np.array_equal(found, value):
            raise TaskError(
                f"parameter {name} is not in the exported graph as it is: it is unused, shared by two layers, or "
                "computed with first (PReLU, GroupNorm with weights, recurrent layers, weight_norm; a Linear on more "
                "than two dimensions: flatten before it, or use Conv1d)"
            )


def clip_input(graph: onnx.GraphProto, low: float, high: float) -> None:
    """Readings are clipped to the signature's range inside the graph."""
    name = graph.input[0].name
    for node in graph.node:
        node.input[:] = [f"{name}_clipped" if each == name else each for each in node.input]
    for bound, value in (("low", low), ("high", high)):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), f"{name}_{bound}"))
    inputs = [name, f"{name}_low", f"{name}_high"]
    graph.node.insert(0, onnx.helper.make_node("Clip", inputs, [f"{name}_clipped"], f"{name}_clip"))


def canonical(model: onnx.ModelProto) -> bytes:
    """The serialized model without names of files and tools, its initializers raw, used, and sorted by name."""
    model.ClearField("producer_name")
    model.ClearField("producer_version")
    model.ClearField("functions")
    graph = model.graph
    graph.name = "model"
    graph.ClearField("value_info")
    nodes = list(graph.node)
    for part in (model, graph, *graph.input, *graph.output, *nodes):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    used = {name for node in nodes for name in node.input}
    arrays = {i.name: numpy_helper.to_array(i) for i in graph.initializer if i.name in used}
    graph.ClearField("initializer")
    graph.initializer.extend(numpy_helper.from_array(arrays[name], name) for name in sorted(arrays))
    data: bytes = model.SerializeToString(deterministic=True)
    return data
