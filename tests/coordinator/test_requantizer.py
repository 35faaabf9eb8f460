"""A patched template is byte for byte what a fresh export and quantization gives; what cannot be so is refused."""

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from coordinator.exporter import canonical, export, write_parameters
from coordinator.golden import golden_inputs
from coordinator.requantizer import Registration, fresh, quantize_model, register
from coordinator.warm_start import warm_start
from fleet.artifact import golden_digest, logits, open_session
from fleet.errors import TaskError
from fleet.quantization import Bias, Plain, Template, Weight
from fleet.task import PrivacyUnit, Signature, Task, Training, Windows, set_weights, weights_of
from fleet.weights import Flat, Layout
from simulations.agreement import disagreement
from simulations.smartwatch import Model, smartwatch

SHAPE = (3, 40)
CLASSES = ("walk", "run", "sit", "lie")


class Features(nn.Module):
    """A float front with constant buffers, then one trained layer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("waves", torch.sin(torch.arange(40.0)[:, None] * torch.linspace(0.2, 1.3, 6) + 0.5))
        self.head = nn.Linear(18, len(CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spectrum = torch.log1p((x @ self.get_buffer("waves")).abs()) / 4
        logits: torch.Tensor = self.head(spectrum.flatten(1).clamp(-1, 1))
        return logits


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(3, 8, 5), nn.Conv1d(8, 8, 3)
        self.head = nn.Linear(8, len(CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool1d(nn.functional.hardtanh(self.first(x.clamp(-4, 4))), 2)
        logits: torch.Tensor = self.head(nn.functional.hardtanh(self.second(x)).mean(-1))
        return logits


class Normalised(nn.Module):
    """Never larger than one, but all that the graph shows is a division by a thousandth or more."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(120, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        logits: torch.Tensor = self.head(x / (x.abs().amax(1, keepdim=True) + 1e-3))
        return logits


def export_float(task: Task, weights: Flat) -> bytes:
    """The float32 ONNX model of ``weights``: what the artifact is compared with."""
    return canonical(export(task, weights)[0])


def mlp(activation: Callable[[], nn.Module] = nn.Hardtanh) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(120, 12), activation(), nn.Linear(12, len(CLASSES)))


MODELS: dict[str, Callable[[], nn.Module]] = {"features": Features, "cnn": Cnn, "mlp": mlp}
BUILT_IN: dict[str, Model] = {"smartwatch features": "features", "smartwatch cnn": "cnn"}
models = pytest.mark.parametrize("name", MODELS)
built_in_too = pytest.mark.parametrize("name", [*MODELS, *(pytest.param(n, marks=pytest.mark.slow) for n in BUILT_IN)])


def task(model: Callable[[], nn.Module]) -> Task:
    signature = Signature("x", SHAPE, -4.0, 4.0, CLASSES)
    return Task("activity", model, signature, PrivacyUnit("window"), Training(0.1, 10), dict)


@cache
def named(name: str) -> Task:
    return smartwatch(BUILT_IN[name]) if name in BUILT_IN else task(MODELS[name])


def start(model: Callable[[], nn.Module]) -> Flat:
    torch.manual_seed(0)
    return weights_of(model())


@cache
def registered(name: str) -> Registration:
    return register(named(name), start(named(name).model))


@cache
def exported(name: str) -> tuple[onnx.ModelProto, Layout]:
    return export(named(name), start(named(name).model))


def trained(name: str) -> Flat:
    """Weights of a model that tells four wave lengths apart."""
    torch.manual_seed(0)
    model = MODELS[name]()
    x, y = torch.from_numpy(readings(256)), torch.arange(256) % 4
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(80):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(x), y))
        optimizer.step()
    return weights_of(model)


def readings(count: int, seed: int = 1) -> Flat:
    """Waves under noise; the wave length of reading ``i`` belongs to class ``i % 4``."""
    rng = np.random.default_rng(seed)
    waves = np.sin(np.arange(40) * (0.2 + 0.35 * (np.arange(count) % 4))[:, None] + rng.uniform(0, 1, (count, 1)))
    return (2 * waves[:, None] + rng.normal(0, 0.5, (count, *SHAPE))).astype(np.float32)


@st.composite
def weight_vectors(draw: st.DrawFn, layout: Layout) -> Flat:
    """Each parameter of its own size, from subnormal to huge, some values and whole rows of it zero."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    parameters = {}
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        value = rng.normal(size=shape) * 10.0 ** draw(st.sampled_from([-42, -38, -20, -6, -1, 0, 1, 4, 15, 30, 36]))
        value[rng.random(shape[0]) < draw(st.sampled_from([0, 0.1, 1]))] = 0
        parameters[name] = value
    return layout.flatten(parameters)


@built_in_too
@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_patching_gives_the_bytes_of_quantize_static(name: str, data: st.DataObject) -> None:
    template = registered(name).template
    weights = data.draw(weight_vectors(template.layout))
    try:
        payload = template.quantize(weights)
    except ValueError:
        assume(False)
    model, layout = exported(name)
    write_parameters(model.graph, layout, weights)
    assert template.artifact(payload) == quantize_model(model, layout, named(name))


@built_in_too
@settings(max_examples=1)
@given(seed=st.integers(0, 2**32))
def test_patching_gives_the_bytes_of_a_fresh_export(name: str, seed: int) -> None:
    template = registered(name).template
    weights = np.random.default_rng(seed).normal(size=template.layout.size).astype(np.float32)
    assert template.artifact(template.quantize(weights)) == fresh(named(name), weights)


@pytest.mark.parametrize("name", ["cnn"])
def test_a_template_does_not_depend_on_the_weights_it_was_registered_with(name: str) -> None:
    zeros = np.zeros_like(start(MODELS[name]))
    assert register(task(MODELS[name]), zeros).template.digest == registered(name).template.digest


@models
def test_int8_agrees_with_float32(name: str) -> None:
    template = registered(name).template
    weights = trained(name)
    exact = logits(open_session(export_float(task(MODELS[name]), weights)), readings(1000, seed=2))
    quantized = logits(open_session(template.artifact(template.quantize(weights))), readings(1000, seed=2))
    assert (exact.argmax(1) == quantized.argmax(1)).mean() >= 0.99


@pytest.mark.parametrize(
    ("model", "most", "told"),
    [
        pytest.param(mlp, 4.0, False, id="fit"),
        pytest.param(mlp, 4e4, True, id="a signature far wider than the readings"),
        pytest.param(Normalised, 4.0, True, id="a division that the graph does not bound"),
    ],
)
def test_ranges_that_leave_int8_no_digits_are_told_from_the_donors_windows(
    model: Callable[[], nn.Module], most: float, told: bool
) -> None:
    torch.manual_seed(0)
    public = Windows(readings(200), np.arange(200) % 4)
    activity = task(model)
    wide = replace(activity, donor=lambda: public, signature=replace(activity.signature, low=-most, high=most))
    weights = warm_start(wide, seed=0)
    template = register(wide, weights).template
    assert [agreed(said) < 0.9 for said in disagreement(wide, template, weights)] == [True] * told
    assert disagreement(replace(wide, donor=None), template, weights) == ()


def agreed(said: str) -> float:
    found = re.match(r"int8 and float32 name the same class in (\d+)% of the donor's windows: ", said)
    assert found
    return int(found[1]) / 100


@models
def test_the_float32_export_answers_as_torch_does(name: str) -> None:
    weights = start(MODELS[name])
    model = MODELS[name]()
    set_weights(model, weights)
    answers = logits(open_session(export_float(task(MODELS[name]), weights)), readings(20))
    with torch.no_grad():
        expected = model(torch.from_numpy(readings(20)).clamp(-4, 4)).numpy()
    np.testing.assert_allclose(answers, expected, atol=1e-5)


@models
def test_dequantized_weights_in_float32_answer_as_the_artifact_does(name: str) -> None:
    template = registered(name).template
    payload = template.quantize(start(MODELS[name]))
    trained_from = export_float(task(MODELS[name]), template.dequantize(payload))
    served = logits(open_session(template.artifact(payload)), readings(50))
    np.testing.assert_allclose(logits(open_session(trained_from), readings(50)), served, atol=0.05)


@models
def test_readings_are_clipped_inside_the_graph(name: str) -> None:
    session = open_session(registered(name).template.artifact(registered(name).template.quantize(start(MODELS[name]))))
    far = readings(20) * 100
    np.testing.assert_array_equal(logits(session, far), logits(session, far.clip(-4, 4)))


@models
def test_a_template_survives_the_wire(name: str) -> None:
    template = registered(name).template
    assert Template.from_bytes(template.to_bytes()) == template


@models
def test_quantizing_the_dequantized_weights_changes_nothing(name: str) -> None:
    template = registered(name).template
    payload = template.quantize(start(MODELS[name]))
    assert template.quantize(template.dequantize(payload)) == payload


@models
def test_bounded_models_compute_in_integers_without_a_warning(name: str) -> None:
    assert registered(name).warnings == ()
    assert all(isinstance(stored, Weight | Bias) for stored in registered(name).template.plan)


@models
def test_an_artifact_names_no_file_and_no_tool(name: str) -> None:
    graph = registered(name).template.graph
    assert not any(word in graph for word in (b"/work", b".py", b"torch", b"onnx.quantize"))


def test_an_unbounded_relu_leaves_the_layers_around_it_in_float32_and_says_so() -> None:
    found = register(task(lambda: mlp(nn.ReLU)), start(lambda: mlp(nn.ReLU)))
    assert [type(stored) for stored in found.template.plan] == [Weight, Plain, Weight, Plain]
    after, before = found.warnings
    assert after.startswith("1.weight: the range after this Gemm is unbounded")
    assert before.startswith("3.weight: the range before this Gemm is unbounded")
    assert before.endswith("put Hardtanh before it")


@pytest.mark.parametrize("activation", [nn.ReLU6, nn.Tanh, nn.Sigmoid])
def test_other_bounded_activations_are_quantized_too(activation: Callable[[], nn.Module]) -> None:
    activity = task(lambda: mlp(activation))
    weights = start(activity.model)
    model, layout = export(activity, weights)
    exact = logits(open_session(export_float(activity, weights)), readings(500))
    artifact = quantize_model(model, layout, activity)
    assert np.abs(exact - logits(open_session(artifact), readings(500))).max() < 0.05
    assert b"3.bias_quantized" in artifact


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(40, 40), nn.Linear(120, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.hardtanh(self.layer(x.flatten(0, 1)))
        logits: torch.Tensor = self.head(nn.functional.hardtanh(self.layer(x)).reshape(-1, 120))
        return logits


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.spare = nn.Linear(120, 4), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(x.flatten(1))
        return logits


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :4] * self.gain


class Vector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.weight = nn.Linear(120, 4), nn.Parameter(torch.ones(120))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(x.flatten(1)) + (x.flatten(1) @ self.weight).unsqueeze(1)
        return logits


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(120, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            x = -x
        logits: torch.Tensor = self.head(x.flatten(1))
        return logits


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("projection", torch.rand(120, 9))
        self.head = nn.Linear(9, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head((x.flatten(1) @ self.get_buffer("projection")).clamp(-1, 1))
        return logits


class FrozenBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(120, 4)
        self.head.bias.requires_grad_(False).fill_(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(x.flatten(1))
        return logits


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        pytest.param(Tied, "shared by 2 layers", id="shared weight"),
        pytest.param(Unused, "parameter spare.weight is not in the exported graph", id="unused parameter"),
        pytest.param(
            lambda: nn.Sequential(nn.Linear(40, 4), nn.Flatten()), "flatten before it", id="transposed weight"
        ),
        pytest.param(Vector, r"parameter weight is multiplied as a vector: .* \(120, 1\)", id="a vector"),
        pytest.param(Scaled, "nothing to quantize", id="no layer"),
        pytest.param(
            Branching,
            r"cannot export the model: its way depends on the values of a reading at test_requantizer.py, line \d+",
            id="branch on data",
        ),
        pytest.param(FrozenBias, "bias frozen", id="frozen bias"),
        pytest.param(Random, "constant of the model random", id="other constants each time"),
    ],
)
def test_a_model_that_cannot_be_patched_exactly_is_refused(model: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(TaskError, match=reason):
        register(task(model), start(model))


def test_an_exporter_that_fails_prints_and_logs_nothing(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(TaskError):
        register(task(Branching), start(Branching))
    shown = capfd.readouterr()
    logging.getLogger("edgefleet").error("heard again")
    assert (shown.out, shown.err) == ("", "")
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == ["heard again"]


@models
def test_golden_inputs_are_public_plausible_and_the_same_every_time(name: str) -> None:
    template, signature = registered(name).template, task(MODELS[name]).signature
    artifact = template.artifact(template.quantize(start(MODELS[name])))
    inputs = golden_inputs(artifact, signature)
    assert inputs.shape == (16, *SHAPE)
    assert inputs.dtype == np.float32
    assert -4 <= inputs.min() < -1 < 1 < inputs.max() <= 4
    np.testing.assert_array_equal(inputs, golden_inputs(artifact, signature))
    assert not np.array_equal(inputs, golden_inputs(artifact, signature, seed=1))


@models
def test_golden_digests_survive_noise_in_the_last_bits_of_the_float_front(name: str) -> None:
    template, signature = registered(name).template, task(MODELS[name]).signature
    session = open_session(template.artifact(template.quantize(start(MODELS[name]))))
    inputs = golden_inputs(template.artifact(template.quantize(start(MODELS[name]))), signature)
    if name == "features":
        shaken = inputs * np.float32(1 + 2e-7)
        assert golden_digest(session, shaken) == golden_digest(session, inputs)
    assert golden_digest(session, inputs) == golden_digest(session, inputs.copy())


def test_golden_inputs_that_keep_no_distance_from_ties_are_refused() -> None:
    class Crowded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6_000, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            many = torch.sin(x.flatten(1).repeat(1, 50)[:, :6_000] * torch.linspace(1, 2, 6_000))
            logits: torch.Tensor = self.head(many)
            return logits

    template = register(task(Crowded), start(Crowded)).template
    with pytest.raises(TaskError, match="rounding tie"):
        golden_inputs(template.artifact(template.quantize(start(Crowded))), task(Crowded).signature)
