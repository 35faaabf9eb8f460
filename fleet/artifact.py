"""Runs the bytes of a quantized model: one thread, one runtime, the same bits everywhere."""

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fleet.errors import MissingExtraError, TrustError

if TYPE_CHECKING:
    import onnxruntime as ort

Float32 = npt.NDArray[np.float32]

RUNTIME = "onnxruntime 1.31"  # named in every release: golden digests hold for this runtime


def open_session(artifact: bytes) -> "ort.InferenceSession":
    """A session on the CPU with one thread.

    All graph optimizations are on: seven-bit artifacts were compared bit for bit, on six processors, with these.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        TrustError: It does not load the artifact.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingExtraError("onnxruntime is not installed: pip install 'edgefleet[node]'") from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.use_deterministic_compute = True
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(artifact, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise TrustError(f"the artifact does not load: {str(error).splitlines()[0]}") from error


def logits(session: "ort.InferenceSession", x: Float32) -> Float32:
    """The answers, float32 ``(n, classes)``, to examples ``x``, float32 ``(n, *shape)``."""
    (answers,) = session.run(None, {session.get_inputs()[0].name: x})
    return np.asarray(answers, dtype=np.float32)


def golden_digest(session: "ort.InferenceSession", inputs: Float32) -> str:
    """The sha256, in hex, of the shape and the bits of the answers to ``inputs``, asked one at a time as in serving."""
    answers = np.concatenate([logits(session, inputs[i : i + 1]) for i in range(len(inputs))])
    shape = "x".join(map(str, answers.shape))
    return hashlib.sha256(f"{shape}:".encode() + answers.astype("<f4").tobytes()).hexdigest()
