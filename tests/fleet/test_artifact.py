"""The bytes of an artifact give the same bits in every session."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from fleet.artifact import RUNTIME, golden_digest, logits, open_session
from fleet.errors import MissingExtraError, TrustError

ROOT = Path(__file__).parent.parent.parent


def doubler(factor: float = 2.0) -> bytes:
    """An ONNX model of one Mul, ``(n, 3)`` to ``(n, 3)``."""
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3]) for name in ("x", "y")]
    constant = onnx.numpy_helper.from_array(np.array(factor, np.float32), "factor")
    node = onnx.helper.make_node("Mul", ["x", "factor"], ["y"])
    graph = onnx.helper.make_graph([node], "g", value[:1], value[1:], [constant])
    opsets = [onnx.helper.make_opsetid("", 18)]
    data: bytes = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return data


X = np.arange(12, dtype=np.float32).reshape(4, 3)


def test_logits_have_one_row_an_example() -> None:
    answers = logits(open_session(doubler()), X)
    np.testing.assert_array_equal(answers, X * 2)
    assert answers.dtype == np.float32


def test_a_golden_digest_is_the_same_in_every_session() -> None:
    assert golden_digest(open_session(doubler()), X) == golden_digest(open_session(doubler()), X)


def test_a_golden_digest_tells_one_bit() -> None:
    changed = open_session(doubler(float(np.nextafter(np.float32(2), np.float32(3)))))
    assert golden_digest(changed, X) != golden_digest(open_session(doubler()), X)


def test_a_golden_digest_tells_the_number_of_examples() -> None:
    session = open_session(doubler())
    assert golden_digest(session, X) != golden_digest(session, X[:3])


def test_a_session_has_one_thread() -> None:
    options = open_session(doubler()).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)


@pytest.mark.parametrize("data", [b"", b"not onnx", doubler()[:-20]], ids=["empty", "noise", "cut off"])
def test_bytes_that_do_not_load_are_not_trusted(data: bytes) -> None:
    with pytest.raises(TrustError, match="does not load"):
        open_session(data)


def test_the_runtime_is_the_one_that_releases_name() -> None:
    assert "onnxruntime " + ".".join(onnxruntime.__version__.split(".")[:2]) == RUNTIME


def test_without_onnx_runtime_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"edgefleet\[node\]"):
        open_session(doubler())


def test_the_runtime_does_not_phone_home(tmp_path: Path) -> None:
    """It would keep what it wants to send, and a number for this device, in a folder of its own."""
    environment = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "import fleet, onnxruntime, time; time.sleep(1)"]
    subprocess.run(command, env=environment, check=True, cwd=tmp_path)
    assert not list(tmp_path.rglob("*onnxruntime*"))
