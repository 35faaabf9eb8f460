"""What range a tensor of a graph stays in, read off the architecture: no data is looked at.

Fixed ranges cost no privacy and no calibration set, and are as good as calibrating on the pooled private data.
"""

from collections.abc import Callable, Iterable
from itertools import product

import numpy as np
import onnx
from onnx import numpy_helper

Range = tuple[float, float]
Rule = Callable[[list[Range]], Range]

SHAPE_ONLY = frozenset({"Flatten", "Identity", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
POOLING = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMax", "ReduceMean", "ReduceMin"})
PICKING = frozenset({"DepthToSpace", "Dropout", "Expand", "Gather", "Slice", "SpaceToDepth", "Split", "Tile", "TopK"})
KEEP = SHAPE_ONLY | POOLING | PICKING
BOUNDED: dict[str, Range] = {
    "Sigmoid": (0.0, 1.0),
    "HardSigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Softsign": (-1.0, 1.0),
    "Erf": (-1.0, 1.0),
    "Sin": (-1.0, 1.0),
    "Cos": (-1.0, 1.0),
}
COMBINE: dict[str, Rule] = {
    "Add": lambda r: _span(a + b for a, b in product(*r)),
    "Sub": lambda r: _span(a - b for a, b in product(*r)),
    "Mul": lambda r: _span(a * b for a, b in product(*r)),
    "Max": lambda r: (max(low for low, _ in r), max(high for _, high in r)),
    "Min": lambda r: (min(low for low, _ in r), min(high for _, high in r)),
    "Concat": lambda r: _span(value for pair in r for value in pair),
    "Relu": lambda r: (max(r[0][0], 0.0), max(r[0][1], 0.0)),
    "Neg": lambda r: (-r[0][1], -r[0][0]),
    "Abs": lambda r: (max(r[0][0], -r[0][1], 0.0), max(-r[0][0], r[0][1])),
}
SATURATED: dict[str, Range] = {"Tanh": (-4.0, 4.0), "Sigmoid": (-8.0, 8.0)}  # flat beyond, to an eighth of a step


class Ranges:
    """The ranges of the tensors of one graph.

    Args:
        graph: Its constants are the initializers that are not in ``parameters``.
        parameters: Names of initializers that training changes, and that have no range therefore.
        low, high: Bounds of the graph's input.
    """

    def __init__(self, graph: onnx.GraphProto, parameters: Iterable[str], low: float, high: float) -> None:
        known = set(parameters)
        self._constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer if i.name not in known}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        self._outputs = {output.name for output in graph.output}
        self._known: dict[str, Range] = {graph.input[0].name: (low, high)}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
            found = self._after(node)
            if found is not None:
                self._known.update((name, found) for name in node.output[: 1 if node.op_type == "TopK" else None])

    def of(self, name: str) -> Range | None:
        """The range that ``name`` cannot leave, or None if the architecture does not say."""
        constant = self._constants.get(name)
        if constant is not None and constant.dtype == np.float32 and constant.size:
            return float(constant.min()), float(constant.max())
        return self._known.get(name)

    def needed(self, name: str) -> Range | None:
        """The range outside which the only reader of ``name`` tells no values apart, or None."""
        readers = self._readers.get(name, [])
        if len(readers) != 1 or name in self._outputs:
            return None
        (reader,) = readers
        if reader.op_type == "Clip":
            return self._bounds(reader)
        if reader.op_type in SHAPE_ONLY:
            return self.needed(reader.output[0])
        return SATURATED.get(reader.op_type)

    def removable_clip(self, name: str) -> onnx.NodeProto | None:
        """The Clip that a quantizer of the range ``needed(name)`` does for free: a uint8 range always holds 0."""
        readers = self._readers.get(name, [])
        bounds = self.needed(name)
        if bounds is None or readers[0].op_type != "Clip" or not bounds[0] <= 0 <= bounds[1]:
            return None
        return readers[0]

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that read ``name``."""
        return self._readers.get(name, [])

    def _after(self, node: onnx.NodeProto) -> Range | None:
        op = node.op_type
        if op in BOUNDED:
            return BOUNDED[op]
        if op == "Clip":
            return self._clipped(node)
        inputs = [self.of(name) for name in (node.input[:1] if op in KEEP else node.input)]
        ranges = [found for found in inputs if found is not None]
        if len(ranges) < len(inputs) or not inputs:
            return None
        if op in KEEP:
            return ranges[0]
        if op == "Div":
            return self._divided(ranges)
        return COMBINE[op](ranges) if op in COMBINE and len(ranges) <= 2 else None

    def _clipped(self, node: onnx.NodeProto) -> Range | None:
        limits = [self._scalar(name) for name in node.input[1:]] + [None, None]
        low, high = self.of(node.input[0]) or (-np.inf, np.inf)
        for limit, clip in zip(limits, (np.maximum, np.minimum), strict=False):
            if limit is not None:
                low, high = float(clip(low, limit)), float(clip(high, limit))
        return (low, high) if np.isfinite([low, high]).all() else None

    def _bounds(self, node: onnx.NodeProto) -> Range | None:
        limits = [self._scalar(name) for name in node.input[1:]]
        if len(limits) != 2 or limits[0] is None or limits[1] is None or not limits[0] < limits[1]:
            return None
        return limits[0], limits[1]

    def _scalar(self, name: str) -> float | None:
        constant = self._constants.get(name)
        return None if constant is None else float(constant)

    @staticmethod
    def _divided(ranges: list[Range]) -> Range | None:
        (low, high), (least, most) = ranges
        return None if least <= 0 <= most else _span(a / b for a in (low, high) for b in (least, most))


def _span(values: Iterable[float]) -> Range:
    found = list(values)
    return min(found), max(found)
