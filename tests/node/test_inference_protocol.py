"""The Open Inference Protocol as bytes: what is read, what is refused and why, and that nothing else can happen."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fleet.errors import InputError
from fleet.task import Signature
from node.inference_protocol import OUTPUTS, Tensor, Wanted, decode, encode

SIGNATURE = Signature("x", (2, 3), -1.0, 1.0, ("left", "right"))
ALL_JSON = tuple(Wanted(name, binary=False) for name in OUTPUTS)


def tensor(**changed: Any) -> dict[str, Any]:
    given_ = {"name": "x", "datatype": "FP32", "shape": [1, 2, 3], "data": [[[1, 2, 3], [4, 5, 6.5]]], **changed}
    return {name: value for name, value in given_.items() if value is not None}


def ask(*, request: dict[str, Any] | None = None, **changed: Any) -> bytes:
    return json.dumps({"inputs": [tensor(**changed)], **(request or {})}).encode()


def test_a_request_in_json_is_read_nested_or_flat() -> None:
    for data in ([[[1, 2, 3], [4, 5, 6.5]]], [1, 2, 3, 4, 5, 6.5]):
        question = decode(ask(data=data, request={"id": "a"}), None, SIGNATURE)
        assert (question.id, question.outputs) == ("a", ALL_JSON)
        assert question.x.dtype == np.float32
        np.testing.assert_array_equal(question.x, [[[1, 2, 3], [4, 5, 6.5]]])


finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(
    arrays.arrays("<f4", st.tuples(st.integers(1, 5), st.just(2), st.just(3)), elements=finite), st.binary(max_size=3)
)
def test_binary_readings_arrive_bit_by_bit_wherever_they_begin(x: np.ndarray, padding: bytes) -> None:
    size = {"binary_data_size": x.nbytes}
    head = ask(shape=list(x.shape), data=None, parameters=size) + b" " * len(padding)
    question = decode(head + x.tobytes(), len(head), SIGNATURE)
    assert question.x.tobytes() == x.tobytes()
    assert question.x.flags.aligned


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(2), st.just(3)), elements=finite))
def test_readings_in_json_arrive_bit_by_bit(x: np.ndarray) -> None:
    assert (decode(ask(shape=list(x.shape), data=x.tolist()), None, SIGNATURE).x == x).all()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "must be a JSON object"),
        (b"{}", "inputs: must be a list of one"),
        (json.dumps({"inputs": [tensor(), tensor()]}).encode(), "inputs: must be a list of one"),
        (ask(request={"id": 1}), "id: must be"),
        (ask(request={"id": "a" * 257}), "id: must be"),
        (ask(request={"id": "\ud800"}), "id: must be"),
        (ask(request={"parameters": []}), "parameters: must be an object"),
        (ask(request={"parameters": {"binary_data_output": 1}}), "binary_data_output: must be true or false"),
        (ask(request={"outputs": "logits"}), "outputs: must be a list"),
        (ask(request={"outputs": [{"name": "y"}]}), r"outputs\[0\].name: 'y', there are logits, label, class"),
        (ask(request={"outputs": [{"name": ["y"]}]}), r"outputs\[0\].name"),
        (ask(request={"outputs": [{"name": "label", "parameters": {"binary_data": 1}}]}), "binary_data: must be true"),
        (ask(request={"outputs": [{"name": "logits", "parameters": {"classification": 1}}]}), "ask for 'label'"),
        (ask(name="y"), r"inputs\[0\].name: 'y', the task takes 'x'"),
        (ask(datatype="FP64"), r"inputs\[0\].datatype: 'FP64', the task takes 'FP32'"),
        (ask(shape=[2, 3]), r"inputs\[0\].shape: \[2, 3\], the task takes \['n', 2, 3\]"),
        (ask(shape=[0, 2, 3]), r"inputs\[0\].shape"),
        (ask(shape=[True, 2, 3]), r"inputs\[0\].shape"),
        (ask(shape=[-1, 2, 3]), r"inputs\[0\].shape"),
        (ask(shape=[1.0, 2, 3]), r"inputs\[0\].shape"),
        (ask(shape=[]), r"inputs\[0\].shape"),
        (ask(shape="1"), r"inputs\[0\].shape"),
        (ask(shape=[10**30, 2, 3]), r"inputs\[0\].shape"),
        (ask(shape=[2, 2, 3]), r"inputs\[0\].data: 6 values, the shape \[2, 2, 3\] has 12"),
        (ask(data=None), r"inputs\[0\].data: must be a list"),
        (ask(data=[[1, 2], [3]]), r"inputs\[0\].data: must be numbers"),
        (ask(data=["1"] * 6), r"inputs\[0\].data: must be numbers"),
        (ask(data=[True] * 6), r"inputs\[0\].data: must be numbers"),
        (ask(data=[float("nan")] * 6), r"inputs\[0\].data: NaN"),
        (ask(data=[1e300] * 6), r"inputs\[0\].data: NaN, infinite or beyond float32"),
        (ask(data=[10**400] * 6), r"inputs\[0\].data: must be numbers"),
        (ask(parameters=[]), r"inputs\[0\].parameters: must be an object"),
        (ask(parameters={"binary_data_size": 24}), r"inputs\[0\].data: given beside"),
        (ask(data=None, parameters={"binary_data_size": 24}), "24, but 0 bytes follow"),
        (ask(parameters={"shared_memory_region": "r"}), "shared_memory_region: not offered"),
    ],
)
def test_a_bad_request_names_the_field(body: bytes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        decode(body, None, SIGNATURE)


@pytest.mark.parametrize(
    ("size", "tail", "says"),
    [
        (20, 20, "20, the shape .* of FP32 takes 24"),
        (24, 20, "24, but 20 bytes follow"),
        (24, 28, "24, but 28 bytes follow"),
        ("24", 24, "'24', the shape"),
        (None, 24, "binary_data_size: missing, 24 bytes follow"),
    ],
)
def test_binary_sizes_that_disagree_are_refused(size: Any, tail: int, says: str) -> None:
    parameters = {} if size is None else {"binary_data_size": size}
    head = ask(data=None, parameters=parameters)
    with pytest.raises(InputError, match=says):
        decode(head + bytes(tail), len(head), SIGNATURE)


@pytest.mark.parametrize("json_bytes", [0, 10**6])
def test_a_json_length_beyond_the_body_is_refused(json_bytes: int) -> None:
    with pytest.raises(InputError, match="Inference-Header-Content-Length"):
        decode(ask(), json_bytes, SIGNATURE)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["name", "datatype", "shape", "data", "parameters"]


@given(st.sampled_from(FIELDS), anything, st.sampled_from(["id", "outputs", "parameters", "other"]), anything)
def test_whatever_stands_in_a_field_is_read_or_refused(field: str, value: Any, top: str, other: Any) -> None:
    body = json.dumps({"inputs": [{**tensor(), field: value}], top: other}).encode()
    try:
        question = decode(body, None, SIGNATURE)
    except InputError:
        return
    assert question.x.shape[1:] == SIGNATURE.shape
    assert np.isfinite(question.x).all()
    assert {one.name for one in question.outputs} <= set(OUTPUTS)


@given(st.binary(max_size=200), st.none() | st.integers(-5, 250))
def test_whatever_bytes_come_are_read_or_refused(body: bytes, json_bytes: int | None) -> None:
    with pytest.raises(InputError):
        decode(body, json_bytes, SIGNATURE)


@given(st.data())
def test_a_request_that_was_damaged_is_read_or_refused(data: st.DataObject) -> None:
    head = ask(data=None, parameters={"binary_data_size": 24})
    body = bytearray(head + np.ones(6, "<f4").tobytes())
    for at in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=4)):
        body[at] = data.draw(st.integers(0, 255))
    try:
        question = decode(bytes(body), len(head), SIGNATURE)
    except InputError:
        return
    assert question.x.shape == (1, 2, 3)
    assert np.isfinite(question.x).all()


def test_outputs_stand_in_the_order_in_which_they_were_asked_for() -> None:
    logits = np.array([[0.5, -1], [2, 3]], np.float32)
    tensors = [Tensor("logits", (2, 2), logits), Tensor("label", (2,), ["left", "éa"]), Tensor("class", (2,), [])]
    body, json_bytes = encode({"id": "a"}, tensors, [Wanted("label", binary=True), Wanted("logits", binary=True)])
    assert json_bytes is not None
    head, tail = json.loads(body[:json_bytes]), body[json_bytes:]
    assert [(o["name"], o["datatype"], o["shape"], o["parameters"]["binary_data_size"]) for o in head["outputs"]] == [
        ("label", "BYTES", [2], 15),
        ("logits", "FP32", [2, 2], 16),
    ]
    assert tail == b"\x04\0\0\0left\x03\0\0\0\xc3\xa9a" + logits.astype("<f4").tobytes()


def test_outputs_in_json_are_flat_and_nothing_follows() -> None:
    tensors = [Tensor("logits", (1, 2), np.array([[0.5, -1]], np.float32)), Tensor("label", (1,), ["left"])]
    body, json_bytes = encode({}, tensors, [Wanted("logits", binary=False), Wanted("label", binary=False)])
    assert json_bytes is None
    assert [output["data"] for output in json.loads(body)["outputs"]] == [[0.5, -1], ["left"]]
