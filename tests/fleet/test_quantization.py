"""Seven-bit quantization and the template: arithmetic, wire form, and what is refused."""

import dataclasses
import json
import struct

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.quant_utils import quantize_data

from fleet.errors import TrustError
from fleet.quantization import Bias, Plain, Template, Weight, channel_scales, quantize_channels, widened_scales
from fleet.weights import Flat, Layout

LAYOUT = Layout(("w", "b", "gain"), ((2, 3), (2,), (1,)))
TEMPLATE = Template(
    LAYOUT,
    (Weight(0, (4, 6), (10, 8)), Bias("w", 0.5, (20, 8), (28, 8)), Plain((40, 4))),
    b"head" + bytes(40) + b"tail",
)
WEIGHTS = np.array([1, -2, 0.5, 0, 0, 0, 0.25, -3, 7], np.float32)

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
matrices = arrays.arrays(np.float32, (3, 4), elements=finite)


def template_with(**header: object) -> bytes:
    """The wire form of ``TEMPLATE`` with some of the header replaced."""
    data = TEMPLATE.to_bytes()
    (length,) = struct.unpack_from("<I", data)
    changed = json.dumps(json.loads(data[4 : 4 + length]) | header, sort_keys=True, separators=(",", ":")).encode()
    return struct.pack("<I", len(changed)) + changed + TEMPLATE.graph


def with_plan(index: int, *entry: object) -> bytes:
    plan: list[object] = [["weight", 0, [4, 6], [10, 8]], ["bias", "w", 0.5, [20, 8], [28, 8]], ["plain", [40, 4]]]
    plan[index] = list(entry)
    return template_with(plan=plan)


@given(matrices)
def test_weights_are_quantized_as_onnx_runtime_does(weight: Flat) -> None:
    scales = channel_scales(weight, 0)
    ours = quantize_channels(weight, scales, 0)
    for channel, scale, quantized in zip(weight, scales, ours, strict=True):
        zero, theirs, expected = quantize_data(channel, QuantType.QInt8.tensor_type, True, reduce_range=True)
        assert zero == 0
        assert scale.tobytes() == theirs.tobytes()
        np.testing.assert_array_equal(quantized, expected)


@given(matrices)
def test_weights_have_seven_bits(weight: Flat) -> None:
    quantized = quantize_channels(weight, channel_scales(weight, 1), 1)
    assert quantized.dtype == np.int8
    assert np.abs(quantized.astype(int)).max() <= 64


def test_a_zero_channel_has_scale_one() -> None:
    np.testing.assert_array_equal(channel_scales(np.array([[0, 0], [64, -1]], np.float32), 0), [1, 1])


def test_rounding_is_half_to_even() -> None:
    weight = np.array([[0.5, 1.5, -2.5, 64]], np.float32)
    np.testing.assert_array_equal(quantize_channels(weight, np.ones(1, np.float32), 0), [[0, 2, -2, 64]])


def test_a_scale_is_widened_only_where_the_bias_would_not_fit() -> None:
    scales = np.full(3, 1e-9, np.float32)
    wide = widened_scales(scales, np.array([0, 0.01, -1000], np.float32), np.float32(0.01))
    np.testing.assert_array_equal(wide[:2], scales[:2])
    assert 1000 / (wide[2] * 0.01) == pytest.approx(2**31 / 1.0001, rel=1e-6)


def test_an_artifact_is_the_graph_with_the_payload_in_its_places() -> None:
    artifact = TEMPLATE.artifact(TEMPLATE.quantize(WEIGHTS))
    assert artifact[:4] == b"head"
    assert artifact[-4:] == b"tail"
    np.testing.assert_array_equal(np.frombuffer(artifact, np.int8, 6, 4), [32, -64, 16, 0, 0, 0])
    np.testing.assert_array_equal(np.frombuffer(artifact, "<f4", 2, 10), [2 / 64, 1])
    np.testing.assert_array_equal(np.frombuffer(artifact, "<i4", 2, 20), [16, -6])
    np.testing.assert_array_equal(np.frombuffer(artifact, "<f4", 2, 28), [1 / 64, 0.5])
    np.testing.assert_array_equal(np.frombuffer(artifact, "<f4", 1, 40), [7])


def test_dequantized_weights_are_what_the_artifact_holds() -> None:
    np.testing.assert_array_equal(TEMPLATE.dequantize(TEMPLATE.quantize(WEIGHTS)), WEIGHTS)


def test_the_payload_leaves_out_the_scales_of_biases() -> None:
    assert len(TEMPLATE.quantize(WEIGHTS)) == TEMPLATE.payload_size == 6 + 8 + 8 + 4


@given(arrays.arrays(np.float32, 6, elements=st.floats(-1e3, 1e3, width=32)), st.integers(-(2**23), 2**23))
def test_quantizing_the_dequantized_weights_changes_nothing(weight: Flat, steps: int) -> None:
    bias = (steps * 0.5 * channel_scales(weight.reshape(2, 3), 0)).astype(np.float32)
    payload = TEMPLATE.quantize(np.concatenate([weight, bias, np.ones(1, np.float32)]))
    assert TEMPLATE.quantize(TEMPLATE.dequantize(payload)) == payload


@given(arrays.arrays(np.float32, 9, elements=st.floats(-1e6, 1e6, width=32)))
def test_no_weight_moves_by_more_than_half_a_step(weights: Flat) -> None:
    moved = np.abs(TEMPLATE.dequantize(TEMPLATE.quantize(weights)) - weights).reshape(3, 3)[:2]
    matrix = weights[:6].reshape(2, 3)
    scales = widened_scales(channel_scales(matrix, 0), weights[6:8], np.float32(0.5))
    assert (moved <= scales[:, None] * 0.5001).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        TEMPLATE.quantize(np.where(np.arange(9) == 4, np.float32(bad), WEIGHTS))


def test_weights_of_another_length_or_dtype_are_refused() -> None:
    with pytest.raises(ValueError, match="layout needs"):
        TEMPLATE.quantize(WEIGHTS[:-1])
    with pytest.raises(ValueError, match="float32"):
        TEMPLATE.quantize(WEIGHTS.astype(np.float64))


def test_a_bias_beyond_any_scale_is_refused() -> None:
    far = WEIGHTS.copy()
    far[6] = 3e38
    with pytest.raises(ValueError, match="differ too much"):
        TEMPLATE.quantize(far)


def patched(offset: int, data: bytes) -> bytes:
    payload = bytearray(TEMPLATE.quantize(WEIGHTS))
    payload[offset : offset + len(data)] = data
    return bytes(payload)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="empty"),
        pytest.param(TEMPLATE.quantize(WEIGHTS)[:-1], id="short"),
        pytest.param(TEMPLATE.quantize(WEIGHTS) + b"\0", id="long"),
        pytest.param(patched(0, b"\x41"), id="eight-bit weight"),
        pytest.param(patched(6, struct.pack("<f", -1)), id="negative scale"),
        pytest.param(patched(6, struct.pack("<f", 0)), id="zero scale"),
        pytest.param(patched(6, struct.pack("<f", np.nan)), id="NaN scale"),
        pytest.param(patched(22, struct.pack("<f", np.inf)), id="infinite float"),
    ],
)
def test_a_payload_that_quantize_never_writes_is_refused(payload: bytes) -> None:
    with pytest.raises(TrustError, match="payload"):
        TEMPLATE.artifact(payload)
    with pytest.raises(TrustError, match="payload"):
        TEMPLATE.dequantize(payload)


def test_a_payload_of_weights_beyond_float32_is_refused() -> None:
    with pytest.raises(TrustError, match="leaves the range"):
        TEMPLATE.dequantize(patched(6, struct.pack("<f", 3e38)))


def test_a_template_survives_the_wire() -> None:
    again = Template.from_bytes(TEMPLATE.to_bytes())
    assert again == TEMPLATE
    assert again.digest == TEMPLATE.digest


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\xff\xff\xff{}", id="header longer than the data"),
        pytest.param(TEMPLATE.to_bytes()[:-10], id="graph cut off"),
        pytest.param(TEMPLATE.to_bytes().replace(b'"plan"', b'"plan" '), id="space in the header"),
        pytest.param(struct.pack("<I", 200_000) + b"[" * 200_000, id="deep nesting"),
        pytest.param(template_with(format=2), id="other format"),
        pytest.param(template_with(extra=1), id="unknown key"),
        pytest.param(template_with(plan=[]), id="no plan"),
        pytest.param(template_with(layout=[["w", [2, 3]], ["w", [2]], ["gain", [1]]]), id="same name twice"),
        pytest.param(template_with(layout=[["w", [2, 3]], ["b", [2]], ["gain", [0]]]), id="empty shape"),
        pytest.param(template_with(layout=[["w", [-2, -3]], ["b", [2]], ["gain", [1]]]), id="negative shape"),
        pytest.param(with_plan(0, "weight", 0, [4, 7], [11, 8]), id="values too long"),
        pytest.param(with_plan(0, "weight", 2, [4, 6], [10, 8]), id="axis out of range"),
        pytest.param(with_plan(0, "weight", True, [4, 6], [10, 12]), id="axis no number"),
        pytest.param(with_plan(0, "weight", 1, [4, 6], [10, 8]), id="scales of another axis"),
        pytest.param(with_plan(0, "weight", 0, [4, 6], [9, 8]), id="overlap"),
        pytest.param(with_plan(0, "pickle", 0, [4, 6], [10, 8]), id="unknown kind"),
        pytest.param(with_plan(1, "bias", "gain", 0.5, [20, 8], [28, 8]), id="bias of no weight"),
        pytest.param(with_plan(1, "bias", "w", 0.1, [20, 8], [28, 8]), id="scale no float32"),
        pytest.param(with_plan(1, "bias", "w", -0.5, [20, 8], [28, 8]), id="negative scale"),
        pytest.param(with_plan(1, "bias", "w", float("nan"), [20, 8], [28, 8]), id="NaN scale"),
        pytest.param(with_plan(2, "plain", [46, 4]), id="beyond the graph"),
        pytest.param(with_plan(2, "plain", [-4, 4]), id="before the graph"),
        pytest.param(with_plan(2, "plain", [2, 4]), id="over bytes that are not zero"),
        pytest.param(with_plan(2, "plain", [40.0, 4]), id="offset no integer"),
        pytest.param(with_plan(2, "plain", [40, 4, 0]), id="span of three"),
    ],
)
def test_a_corrupt_template_is_refused(data: bytes) -> None:
    with pytest.raises(TrustError):
        Template.from_bytes(data)


@given(st.integers(0, len(TEMPLATE.to_bytes()) - 1), st.integers(1, 255))
def test_a_flipped_byte_is_refused_or_gives_another_digest(place: int, flip: int) -> None:
    data = bytearray(TEMPLATE.to_bytes())
    data[place] ^= flip
    try:
        found = Template.from_bytes(bytes(data))
    except TrustError:
        return
    assert found.digest != TEMPLATE.digest


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(TrustError):
        Template.from_bytes(data)


def test_a_template_does_not_accept_a_graph_that_holds_weights() -> None:
    graph: npt.NDArray[np.uint8] = np.frombuffer(TEMPLATE.graph, np.uint8).copy()
    graph[5] = 1
    with pytest.raises(ValueError, match="not zero"):
        dataclasses.replace(TEMPLATE, graph=graph.tobytes())
