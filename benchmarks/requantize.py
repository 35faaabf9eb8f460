"""How long one re-quantization takes: patching the template, or exporting and quantizing anew.

python -m benchmarks.requantize [--repeats 5] [--format json]
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from coordinator.exporter import OPSET, OUTPUT, clip_input, quiet
from coordinator.requantizer import fresh, quantize_model, register
from fleet.task import PrivacyUnit, Signature, Task, Training, layout_of, set_weights, weights_of
from fleet.weights import Flat
from simulations.smartwatch import smartwatch


@dataclass(frozen=True, slots=True)
class Row:
    """One model; medians in milliseconds, all measured in this run."""

    model: str
    parameters: int
    patch_ms: float
    dynamo_ms: float
    legacy_ms: float
    dynamo_over_patch: float
    legacy_over_patch: float
    identical_to_dynamo: bool
    identical_to_legacy: bool  # in the weights: the two exporters name nodes and tensors differently
    register_s: float


class Convolutions(nn.Module):
    """Two convolutions over six channels of 100 samples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(6, 32, 7), nn.Conv1d(32, 64, 5)
        self.head = nn.Linear(64, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool1d(nn.functional.hardtanh(self.first(x.clamp(-8, 8))), 2)
        logits: torch.Tensor = self.head(nn.functional.hardtanh(self.second(x)).mean(-1))
        return logits


def mlp() -> nn.Module:
    """64-256-256-10."""
    hidden = [nn.Linear(64, 256), nn.Hardtanh(), nn.Linear(256, 256), nn.Hardtanh()]
    return nn.Sequential(*hidden, nn.Linear(256, 10))


def task(name: str, model: Callable[[], nn.Module], shape: tuple[int, ...], classes: int) -> Task:
    """A task without data."""
    signature = Signature("x", shape, -8.0, 8.0, tuple(str(i) for i in range(classes)))
    return Task(name, model, signature, PrivacyUnit("window"), Training(0.1, 10), dict)


TASKS = [
    smartwatch("features"),
    smartwatch("cnn"),
    task("two_convolutions", Convolutions, (6, 100), 7),
    task("mlp", mlp, (64,), 10),
]


def legacy(task: Task, weights: Flat) -> bytes:
    """The artifact by the exporter of TorchScript, ``dynamo=False``, and ``quantize_static``."""
    module = task.model().eval()
    set_weights(module, weights)
    with quiet(), tempfile.TemporaryDirectory() as folder:
        torch.onnx.export(
            module,
            (torch.zeros(2, *task.signature.shape),),
            Path(folder) / "model.onnx",
            dynamo=False,
            opset_version=OPSET,
            input_names=[task.signature.input],
            output_names=[OUTPUT],
            dynamic_axes={task.signature.input: {0: "batch"}, OUTPUT: {0: "batch"}},
        )
        model = onnx.load(Path(folder) / "model.onnx")
    _name_constants(model.graph)
    clip_input(model.graph, task.signature.low, task.signature.high)
    return quantize_model(model, layout_of(module), task)


def _name_constants(graph: onnx.GraphProto) -> None:
    """Constants are nodes to the old exporter, and initializers to ours."""
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        tensor = onnx.TensorProto()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
        graph.node.remove(node)


def _weight_bytes(artifact: bytes, names: tuple[str, ...]) -> dict[str, bytes]:
    """The quantized values and scales of the parameters, by name."""
    graph = onnx.load_from_string(artifact).graph
    return {i.name: i.raw_data for i in graph.initializer if i.name.startswith(names)}


def measure(task: Task, repeats: int) -> Row:
    """One row; every repeat has new weights, and the three ways take turns."""
    torch.manual_seed(0)
    weights = weights_of(task.model())
    start = time.perf_counter()
    template = register(task, weights).template
    register_s = time.perf_counter() - start
    ways: list[Callable[[Flat], bytes]] = [
        lambda w: template.artifact(template.quantize(w)),
        lambda w: fresh(task, w),
        lambda w: legacy(task, w),
    ]
    times: list[list[float]] = [[], [], []]
    identical = [True, True]
    for seed in range(repeats):
        new = weights + np.random.default_rng(seed).normal(0, 0.01, weights.size).astype(np.float32)
        made = []
        for spent, way in zip(times, ways, strict=True):
            start = time.perf_counter()
            made.append(way(new))
            spent.append((time.perf_counter() - start) * 1e3)
        names = template.layout.names
        identical[0] &= made[0] == made[1]
        identical[1] &= _weight_bytes(made[0], names) == _weight_bytes(made[2], names)
    patch, dynamo, old = (statistics.median(spent) for spent in times)
    return Row(
        task.name, weights.size, patch, dynamo, old, dynamo / patch, old / patch, identical[0], identical[1], register_s
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Milliseconds for one re-quantization.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--format", choices=["table", "json"], default="table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(task, arguments.repeats) for task in TASKS]
    if arguments.format == "json":
        print(json.dumps([asdict(row) for row in rows]))
        return
    table = Table("model", "parameters", "patch", "dynamo", "legacy", "ratios", "same graph, weights", "register")
    for row in rows:
        ratios = f"{row.dynamo_over_patch:.0f}x, {row.legacy_over_patch:.0f}x"
        same = ", ".join("yes" if same else "NO" for same in (row.identical_to_dynamo, row.identical_to_legacy))
        spent = [f"{value:.2f} ms" for value in (row.patch_ms, row.dynamo_ms, row.legacy_ms)]
        table.add_row(row.model, str(row.parameters), *spent, ratios, same, f"{row.register_s:.1f} s")
    Console().print(table)


if __name__ == "__main__":
    main()
