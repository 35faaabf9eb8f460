"""The personal head: only the last layer moves, the same way every time, and nobody hears of it."""

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from fleet.errors import TaskError
from fleet.task import PrivacyUnit, Signature, Task, Training, Windows, layout_of, set_weights, weights_of
from fleet.weights import Flat
from node import personal
from node.personal import personalise

SIGNATURE = Signature("x", (3,), -1.0, 1.0, ("a", "b", "c"))


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.Hardtanh(), nn.Linear(8, 3))


def without_bias() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.Hardtanh(), nn.Linear(8, 3, bias=False))


def frozen_front() -> nn.Module:
    model = two_layers()
    model[0].requires_grad_(False)  # type: ignore[index]
    return model


def task(model: Any = two_layers) -> Task:
    torch.manual_seed(1)
    start = model().state_dict()

    def build() -> nn.Module:
        again: nn.Module = model()
        again.load_state_dict(start)
        return again

    return Task("toy", build, SIGNATURE, PrivacyUnit("point"), Training(learning_rate=0.7, examples=10), dict)


def points(count: int = 60, seed: int = 0) -> Windows:
    x = np.random.default_rng(seed).uniform(-1, 1, (count, 3)).astype(np.float32)
    return Windows(x, x.argmax(1).astype(np.int64))


def loss(toy: Task, weights: Flat, examples: Windows) -> float:
    model = toy.model()
    set_weights(model, weights)
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(torch.from_numpy(examples.x)), torch.from_numpy(examples.y)))


@pytest.mark.parametrize("model", [two_layers, without_bias, frozen_front])
def test_only_the_last_layer_moves(model: Any) -> None:
    toy = task(model)
    before = weights_of(toy.model())
    kept = before.copy()
    after = personalise(toy, before, points())
    layout = layout_of(toy.model())
    was, now = layout.unflatten(before), layout.unflatten(after)
    moved = {name for name in layout.names if not np.array_equal(was[name], now[name])}
    assert moved == {name for name in layout.names if name.startswith("2.")}
    assert np.array_equal(before, kept), "what it was given is left alone"
    assert after.dtype == np.float32


@pytest.mark.parametrize("model", [two_layers, without_bias, frozen_front, lambda: nn.Linear(3, 3)])
def test_it_answers_the_device_better_than_the_fleets_model(model: Any) -> None:
    toy = task(model)
    before = weights_of(toy.model())
    after = personalise(toy, before, points())
    assert loss(toy, after, points(seed=1)) < 0.8 * loss(toy, before, points(seed=1))


def test_its_steps_are_full_batch_gradient_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(personal, "STEPS", 1)
    toy, examples = task(), points()
    before = weights_of(toy.model())
    model = toy.model()
    answers = model(torch.from_numpy(examples.x))
    nn.functional.cross_entropy(answers, torch.from_numpy(examples.y)).backward()  # type: ignore[no-untyped-call]
    moved = layout_of(model).unflatten(before - personalise(toy, before, examples))
    inside = model[:2](torch.from_numpy(examples.x)).detach()  # type: ignore[index]
    length = 2 / (float((inside * inside).sum(1).mean()) + 1)
    for name, parameter in list(model.named_parameters())[2:]:
        assert parameter.grad is not None
        np.testing.assert_allclose(moved[name], length * parameter.grad.numpy(), atol=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_no_step_is_too_long_whatever_the_size_of_the_inputs(scale: float) -> None:
    toy = replace(task(lambda: nn.Linear(3, 3)), signature=replace(SIGNATURE, low=-scale, high=scale))
    examples = Windows((points().x * scale).astype(np.float32), points().y)
    before = np.zeros(12, np.float32)
    assert loss(toy, personalise(toy, before, examples), examples) <= loss(toy, before, examples)


def test_the_same_arguments_give_the_same_weights() -> None:
    toy = task()
    before = weights_of(toy.model())
    first, second = (personalise(toy, before, points()) for _ in range(2))
    assert np.array_equal(first, second)


def test_a_reading_outside_the_range_counts_as_its_nearest_end() -> None:
    toy = task()
    before, x = weights_of(toy.model()), points().x
    far = Windows(3 * x, points().y)
    clipped = Windows((3 * x).clip(-1, 1), points().y)
    assert np.array_equal(personalise(toy, before, far), personalise(toy, before, clipped))


def test_without_examples_nothing_moves() -> None:
    toy = task()
    before = weights_of(toy.model())
    assert np.array_equal(personalise(toy, before, points(0)), before)


def test_a_model_without_a_last_linear_layer_is_refused() -> None:
    toy = task(lambda: nn.Sequential(nn.Linear(3, 3), nn.Hardtanh()))
    with pytest.raises(TaskError, match="does not end in a linear layer"):
        personalise(toy, weights_of(toy.model()), points())


def test_personal_weights_never_leave_the_node_so_they_cost_no_privacy_budget() -> None:
    """It has no way to a ledger, an outbox or a coordinator, and what does send has no way to it."""
    code = "import node.personal, sys; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    reached = {name for name in shown.stdout.split() if name.split(".")[0] in {"node", "coordinator"}}
    assert reached == {"node", "node.head", "node.personal"}
    senders = ("outbox", "learner", "reporter", "client_app")
    assert not any("node.personal" in _imported(Path(personal.__file__).parent / f"{name}.py") for name in senders)


def _imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    plain = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    return plain | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) if node.module}


def test_the_last_layer_is_convex_so_more_steps_never_hurt_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = task()
    before = weights_of(toy.model())
    losses: list[float] = []
    for steps in (1, 10, 100):
        monkeypatch.setattr(personal, "STEPS", steps)
        losses.append(loss(toy, personalise(toy, before, points()), points()))
    assert losses == sorted(losses, reverse=True)


def test_labels_that_no_example_has_stay_possible() -> None:
    toy = task()
    examples: Windows = points()
    seen: npt.NDArray[np.bool_] = examples.y != 2
    own = personalise(toy, weights_of(toy.model()), Windows(examples.x[seen], examples.y[seen]))
    assert np.isfinite(own).all()
