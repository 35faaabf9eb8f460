"""What a task may declare, and what it takes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fleet.errors import InputError, TaskError
from fleet.signing import canonical
from fleet.task import PrivacyUnit, Signature, Task, Training, Windows, divided, load

SIGNATURE = Signature(input="x", shape=(2, 3), low=-1.0, high=1.0, classes=("left", "right"))
TANH = nn.Tanh()
TRAINING = Training(learning_rate=1.0, examples=10)


def devices() -> Any:
    return {}


@pytest.mark.parametrize(
    ("declare", "said"),
    [
        pytest.param(lambda: replace(SIGNATURE, classes="ab"), "signature: classes is 'ab'", id="classes in one word"),
        pytest.param(lambda: replace(SIGNATURE, classes={"a", "b"}), "names in order", id="classes without order"),
        pytest.param(lambda: replace(SIGNATURE, low=-1e39), "both finite float32", id="beyond float32"),
        pytest.param(lambda: replace(SIGNATURE, classes=(0, 1)), "it must be text", id="classes by number"),
        pytest.param(lambda: replace(SIGNATURE, shape=(2.5, 1)), "signature: shape is", id="half a sample"),
        pytest.param(lambda: replace(SIGNATURE, low="-1"), "signature: low is '-1'", id="a bound that is text"),
        pytest.param(lambda: replace(SIGNATURE, dtype="flaot32"), "signature: dtype is 'flaot32'", id="no dtype"),
        pytest.param(lambda: PrivacyUnit(3), "unit: name is 3", id="a unit by number"),  # type: ignore[arg-type]
        pytest.param(lambda: PrivacyUnit("window", group=1.5), "unit: group is 1.5", id="half a group"),  # type: ignore[arg-type]
        pytest.param(lambda: replace(TRAINING, examples=100.5), "training: examples is 100.5", id="half an example"),
        pytest.param(lambda: replace(SIGNATURE, dtype="float64"), "dtype float64 is not supported", id="dtype"),
        pytest.param(lambda: replace(SIGNATURE, low=1.0), "must be below", id="no range"),
        pytest.param(lambda: replace(SIGNATURE, high=np.inf), "both finite", id="endless range"),
        pytest.param(lambda: replace(SIGNATURE, classes=("left",)), "two different names", id="one class"),
        pytest.param(lambda: replace(SIGNATURE, classes=("left", "left")), "two different names", id="a class twice"),
        pytest.param(lambda: replace(SIGNATURE, shape=()), "positive sizes", id="no shape"),
        pytest.param(lambda: replace(SIGNATURE, shape=(2, 0)), "positive sizes", id="empty shape"),
        pytest.param(lambda: PrivacyUnit("window", group=0), "group 0 must be 1 or more", id="no group"),
        pytest.param(lambda: replace(TRAINING, learning_rate=0.0), "must be positive", id="no step"),
        pytest.param(lambda: replace(TRAINING, learning_rate=np.nan), "must be positive", id="a step that is none"),
        pytest.param(lambda: replace(TRAINING, learning_rate=np.inf), "must be positive", id="an endless step"),
        pytest.param(lambda: replace(TRAINING, examples=0), "must be positive", id="no examples"),
        pytest.param(lambda: replace(TRAINING, noise_limit=0.0), "must be positive", id="no noise at all"),
        pytest.param(lambda: Windows(np.zeros((2, 2, 3), np.float32), np.zeros(1, np.int64)), "1 labels", id="lengths"),
        pytest.param(
            lambda: Task("my task", devices, SIGNATURE, PrivacyUnit("window"), TRAINING, devices),
            "letters, digits and underscores",
            id="name",
        ),
    ],
)
def test_what_makes_no_sense_cannot_be_declared(declare: Callable[[], object], said: str) -> None:
    with pytest.raises(TaskError, match=said):
        declare()


def test_what_numpy_and_lists_declare_is_the_same_task() -> None:
    low, high = np.float32(-1), np.array(1.0)
    signature: Any = Signature(np.str_("x"), list(np.array([2, 3])), low, high, np.array(["left", "right"]))  # type: ignore[arg-type]
    assert replace(SIGNATURE, dtype=np.float32) == replace(SIGNATURE, dtype=np.dtype("float32")) == SIGNATURE  # type: ignore[arg-type]
    training = Training(np.float32(1), np.int64(10))  # type: ignore[arg-type]
    unit = PrivacyUnit(np.str_("window"), np.int32(2))  # type: ignore[arg-type]
    task = Task("toy", devices, signature, unit, training, devices)
    plain = Task("toy", devices, SIGNATURE, PrivacyUnit("window", 2), TRAINING, devices)
    assert (task, hash(task)) == (plain, hash(plain))
    assert canonical(task.spec()) == canonical(plain.spec())


@pytest.mark.parametrize("end", ["sys.exit()", "sys.exit('bye')", "raise ValueError('no')"])
def test_a_task_file_that_ends_itself_is_an_error_and_no_success(tmp_path: Path, end: str) -> None:
    (tmp_path / "task.py").write_text(f"import sys\n{end}\n")
    with pytest.raises(TaskError, match=r"task\.py failed: "):
        load("task.py:TASK", tmp_path)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        pytest.param(np.zeros((3, 2), np.float32), r"shape \(3, 2\), the task takes \(2, 3\)", id="shape"),
        pytest.param(np.zeros((1, 2, 3), np.float32), "shape", id="a batch"),
        pytest.param(np.zeros((2, 3)), "dtype float64, the task takes float32", id="dtype"),
        pytest.param(np.full((2, 3), np.nan, np.float32), "NaN or infinite", id="NaN"),
        pytest.param(np.full((2, 3), -np.inf, np.float32), "NaN or infinite", id="infinite"),
    ],
)
def test_a_reading_that_is_not_what_the_task_takes_is_refused(x: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        SIGNATURE.check(x)


def test_windows_in_any_order_of_memory_are_what_torch_takes() -> None:
    x, y = np.arange(24, dtype=np.float32).reshape(4, 2, 3), np.arange(4)
    backwards, turned = Windows(x[::-1], y[::-1]), Windows(x[:, ::-1, ::-1], y)
    assert torch.from_numpy(backwards.x)[0].tolist() == x[3].tolist()
    assert torch.from_numpy(backwards.y).tolist() == [3, 2, 1, 0]
    assert torch.from_numpy(turned.x)[0].ravel().tolist() == [5, 4, 3, 2, 1, 0]
    assert Windows(x, y).x is x


def test_readings_are_clipped_to_the_range_as_in_the_graph() -> None:
    narrow = replace(SIGNATURE, low=-0.1, high=0.3)
    found = narrow.clipped(np.array([-5, -0.1, 0.2, 5], np.float32))
    assert found.dtype == np.float32
    assert found.tolist() == np.array([-0.1, -0.1, 0.2, 0.3], np.float32).tolist()


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_is_no_class_is_refused(label: int) -> None:
    with pytest.raises(InputError, match="classes 0 to 1"):
        SIGNATURE.check_label(label)


class Halved(nn.Sequential):
    """A Sequential that does more than its layers one after the other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        halved: torch.Tensor = super().forward(x) / 2
        return halved


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        pytest.param(nn.Sequential(nn.Tanh(), nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 2)), 2, id="frozen"),
        pytest.param(nn.Sequential(TANH, TANH, nn.Linear(3, 2)), 2, id="a layer twice"),
        pytest.param(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), 0, id="trained at once"),
        pytest.param(nn.Sequential(nn.Tanh(), nn.Dropout(), nn.Linear(3, 2)), 1, id="dropped anew"),
        pytest.param(nn.Sequential(nn.Tanh(), nn.RReLU(), nn.Linear(3, 2)), 1, id="a slope drawn anew"),
        pytest.param(nn.Sequential(nn.Tanh(), nn.Tanh()), 0, id="nothing to train"),
        pytest.param(Halved(nn.Tanh(), nn.Linear(3, 2)), 0, id="a forward of its own"),
        pytest.param(nn.Linear(3, 2), 0, id="one layer"),
    ],
)
def test_a_model_is_its_front_and_then_the_rest(model: nn.Module, layers: int) -> None:
    front, rest = divided(model)
    assert isinstance(front, nn.Sequential)
    assert len(front) == layers
    assert not any(p.requires_grad for p in front.parameters())
    x = torch.rand(4, 3)
    torch.testing.assert_close(rest.eval()(front.eval()(x)), model.eval()(x), rtol=0, atol=0)
