"""The smartwatch's networks: the same features everywhere, bounded, and one example at a time."""

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch

from coordinator.exporter import export
from fleet.task import divided, set_weights, weights_of
from fleet.weights import Flat
from simulations import spar
from simulations.motion import FEATURES, SIGNATURE, Frames, Statistics
from simulations.smartwatch import Model, smartwatch

MODELS: list[Model] = ["features", "cnn"]
LIVE = spar.recordings()["person05-left"].live.x
STRANGE = np.stack(
    [np.full((6, 100), value, np.float32) for value in (0.0, 1.0, -35.0, 35.0, 3.7, 1e30, -1e30)]
    + [np.where(np.arange(100) % 2, 35.0, -35.0).astype(np.float32) * np.ones((6, 1), np.float32)]
)


def reference(windows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The 147 features as numpy computes them, ``(n, 6, 100)`` to ``(n, 147)``."""
    w = windows.transpose(0, 2, 1).astype(np.float64) / [1, 1, 1, 2.5, 2.5, 2.5]
    mean, spread, centred = w.mean(1), w.std(1), w - w.mean(1, keepdims=True)
    quantiles = np.quantile(w, [0.05, 0.25, 0.5, 0.75, 0.95], axis=1).transpose(1, 0, 2).reshape(len(w), -1)
    covariance = np.einsum("nti,ntj->nij", centred, centred) / 100
    i, j = np.triu_indices(6, 1)
    common = spread[:, :, None] * spread[:, None, :] + 0.05
    correlations = (covariance / common)[:, i, j]
    power = np.abs(np.fft.rfft(centred * np.hanning(100)[None, :, None], axis=1)) ** 2 / 100
    bands = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 6), (6, 9), (9, 14), (14, 22), (22, 51)]
    energies = [np.log10(power[:, low:high].sum(1) + 1e-3) for low, high in bands]
    follows = [np.einsum("nti,ntj->nij", centred[:, :-k], centred[:, k:]) / (100 - k) for k in (5, 12)]
    leads = [((f - f.transpose(0, 2, 1)) / common)[:, i, j] for f in follows]
    return np.concatenate(
        [mean, spread, quantiles, correlations, *energies, *leads, np.diff(w, axis=1).std(1) * 3], axis=1
    )


def some_weights(model: torch.nn.Module) -> Flat:
    return np.random.default_rng(0).normal(scale=0.5, size=len(weights_of(model))).astype(np.float32)


def test_the_features_are_what_numpy_computes() -> None:
    computed = Statistics()(torch.from_numpy(LIVE)).numpy()
    assert computed.shape == (len(LIVE), FEATURES)
    np.testing.assert_allclose(computed, reference(LIVE), rtol=1e-4, atol=1e-4)


def reference_frames(windows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The 42 channels of frames as numpy computes them, ``(n, 6, 100)`` to ``(n, 42, 9)``."""
    w = windows.astype(np.float64) / np.array([1, 1, 1, 2.5, 2.5, 2.5])[:, None]
    c = w - w.mean(2, keepdims=True)
    i, j = np.triu_indices(6, 1)
    common = np.sqrt((c[:, i] ** 2).mean(2) * (c[:, j] ** 2).mean(2) + 0.003)[..., None]
    leads = np.zeros_like(c[:, i])
    leads[..., :-5] = c[:, i, :-5] * c[:, j, 5:] - c[:, j, :-5] * c[:, i, 5:]

    def frames(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.stack([values[..., start : start + 20].mean(-1) for start in range(0, 81, 10)], -1)

    energies = np.log10(frames(c**2) + 0.01)
    return np.concatenate([frames(w), energies, frames(c[:, i] * c[:, j]) / common, frames(leads) / common], 1)


def test_the_frames_are_what_numpy_computes() -> None:
    computed = Frames()(torch.from_numpy(LIVE)).numpy()
    assert computed.shape == (len(LIVE), 42, 9)
    np.testing.assert_allclose(computed, reference_frames(LIVE), rtol=1e-4, atol=1e-4)


def test_the_convolution_never_sees_more_than_its_quantizer_holds() -> None:
    front, rest = divided(smartwatch("cnn", 0).model())
    seen = front(torch.from_numpy(np.concatenate([LIVE, STRANGE])))
    assert seen.shape[1:] == (42, 9)
    assert seen.abs().max() == 2.5
    assert isinstance(next(rest.children()), torch.nn.Conv1d)


@pytest.mark.parametrize("name", MODELS)
def test_the_exported_graph_answers_as_torch_does_whatever_the_batch(name: Model) -> None:
    task = smartwatch(name, 0)
    model = task.model().eval()
    weights = some_weights(model)
    set_weights(model, weights)
    session = onnxruntime.InferenceSession(export(task, weights)[0].SerializeToString())
    for batch in (LIVE[:1], LIVE, STRANGE):
        (answer,) = session.run(None, {"x": batch})
        with torch.no_grad():
            np.testing.assert_allclose(answer, model(torch.from_numpy(batch)).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_silence_constants_and_extremes_have_finite_answers(name: Model) -> None:
    model = smartwatch(name, 0).model()
    set_weights(model, some_weights(model))
    assert model(torch.from_numpy(STRANGE)).isfinite().all()


def test_the_head_never_sees_an_input_longer_than_four() -> None:
    model = smartwatch("features", 0).model()
    seen: list[torch.Tensor] = []
    model.get_submodule("head").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(torch.from_numpy(np.concatenate([LIVE, STRANGE])))
    assert seen[0].norm(dim=1).max() <= 4 + 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_the_answer_to_one_window_does_not_depend_on_the_others(name: Model) -> None:
    model = smartwatch(name, 0).model().train()
    set_weights(model, some_weights(model))
    together = model(torch.from_numpy(LIVE))
    alone = torch.cat([model(torch.from_numpy(window[None])) for window in LIVE])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_no_reading_of_the_data_set_is_clipped_by_the_signature() -> None:
    assert all(np.abs(seen.train.x).max() < SIGNATURE.high for seen in spar.recordings().values())
