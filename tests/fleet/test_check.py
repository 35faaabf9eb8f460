"""What ``edgefleet check`` finds before anything runs."""

import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from fleet.check import check, check_run
from fleet.errors import MissingExtraError, TaskError
from fleet.finding import Finding
from fleet.overlaps import most_windows
from fleet.settings import Settings
from fleet.task import PrivacyUnit, Recording, Signature, Task, Training, Windows
from fleet.weights import Flat

SETTINGS = Settings().changed(release={"patience": timedelta(hours=20)})
SIGNAL = np.random.default_rng(0).uniform(-3, 3, size=(2, 400)).astype(np.float32)
LATER = np.random.default_rng(1).uniform(-3, 3, size=(80, 2, 20)).astype(np.float32)
SIGNATURE = Signature(input="x", shape=(2, 20), low=-3.0, high=3.0, classes=("rest", "move", "fall"))


class Mixing(nn.Module):
    """Standardises by hand what a BatchNorm would."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Loudest(nn.Module):
    """As loud as the loudest of the batch is one."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().max().clamp(min=1e-3)


class Middle(nn.Module):
    """About the mean of all there is."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean()


class Buffered(nn.Linear):
    """Trains, and keeps a buffer too."""

    def __init__(self) -> None:
        super().__init__(40, 3)
        self.register_buffer("seen", torch.zeros(1))


class Forgetful(nn.Module):
    """Has a layer that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(40, 3), nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.used(x.flatten(1))
        return logits


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(20, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.rnn(x)[0][:, -1])
        return logits


class Words(nn.Module):
    """Reads each number as the name of a vector; one of them is never trained."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors, self.head = nn.Embedding(7, 2, padding_idx=0), nn.Linear(80, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.vectors((x + 3).round().long()).flatten(1))
        return logits


class Twice(nn.Module):
    """Its first two layers are asked twice, and what they make is added to what they saw."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv1d(2, 2, 3, padding=1), nn.LayerNorm(20), nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        once = x + nn.functional.hardtanh(self.norm(self.conv(x)))
        logits: Tensor = self.head(nn.functional.hardtanh(self.norm(self.conv(once))).flatten(1))
        return logits


class Inverse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1 / x


def stack(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: deepcopy(nn.Sequential(*layers))


def conv(**how: Any) -> Callable[[], nn.Module]:
    return stack(nn.Conv1d(2, 4, 3, **how), nn.Hardtanh(), nn.Flatten(), nn.Linear(80, 3))


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(40, 3))


def frozen() -> nn.Module:
    return linear().requires_grad_(False)


class Shared(nn.Module):
    """Every one of them has the same head."""

    HEAD = nn.Linear(40, 3)

    def __init__(self) -> None:
        super().__init__()
        self.own, self.head = nn.Linear(40, 40), self.HEAD

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(nn.functional.hardtanh(self.own(x.flatten(1))))
        return logits


def missing() -> Any:
    raise FileNotFoundError("model.txt")


def windows(stride: int = 20, label: int = 0, begin: int = 0) -> Windows:
    x = np.stack([SIGNAL[:, start : start + 20] for start in range(begin, begin + 160, stride)])
    return Windows(x, np.full(len(x), label, np.int64))


def replaced(value: float) -> Windows:
    good = windows()
    x = good.x.copy()
    x[3, 1, 7] = value
    return Windows(x, good.y)


def device(train: Windows, live: Windows | None = None) -> Callable[[], dict[str, Recording]]:
    live = Windows(LATER, np.zeros(80, np.int64)) if live is None else live
    return lambda: {f"d{i}": Recording(f"p{i}", of_device(i, train), of_device(i, live)) for i in range(8)}


def of_device(number: int, seen: Windows) -> Windows:
    """Each device's own windows: a little higher than those of the one before."""
    return Windows(seen.x + seen.x.dtype.type(number / 1000), seen.y)


def task(
    model: Callable[[], nn.Module] = linear,
    devices: Callable[[], dict[str, Recording]] | None = None,
    group: int = 1,
    examples: int = 20,
) -> Task:
    return Task(
        name="watch",
        model=model,
        signature=SIGNATURE,
        unit=PrivacyUnit("window", group),
        training=Training(1.0, examples),
        devices=devices or device(windows()),
    )


def content(task: Task, weights: Flat) -> Sequence[str]:
    return ()


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 1.0), (2.0, 1.0), (-np.inf, 3.0), (0.0, np.inf), (np.nan, 1.0), (0.0, np.nan)]
)
def test_a_signature_has_finite_bounds_in_order(low: float, high: float) -> None:
    with pytest.raises(TaskError, match=r"low .* must be below high .*, and both finite"):
        replace(SIGNATURE, low=low, high=high)


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert check(task(), SETTINGS, content) == []


@pytest.mark.parametrize(
    ("model", "subject", "message"),
    [
        pytest.param(missing, "model", "FileNotFoundError: model.txt", id="does not build"),
        pytest.param(stack(nn.Linear(7, 3)), "model", "fails on a batch of 3", id="wrong input"),
        pytest.param(stack(nn.Flatten(), nn.Linear(40, 4)), "output", "3 classes need (3, 3)", id="wrong output"),
        pytest.param(stack(Inverse(), nn.Flatten(), nn.Linear(40, 3)), "output", "value is 0", id="not finite"),
        pytest.param(stack(nn.BatchNorm1d(2), linear()), "layer 0", "BatchNorm1d mixes", id="batch norm"),
        pytest.param(
            stack(nn.BatchNorm1d(2, affine=False), linear()), "layer 0", "BatchNorm1d mixes", id="batch norm, fixed"
        ),
        pytest.param(
            stack(nn.InstanceNorm1d(2, track_running_stats=True), linear()),
            "layer 0",
            "track_running_stats=False",
            id="instance norm that remembers",
        ),
        pytest.param(stack(Mixing(), linear()), "model", "mixes the examples", id="mixes by hand"),
        pytest.param(stack(Loudest(), linear()), "model", "mixes the examples", id="by the loudest"),
        pytest.param(stack(Middle(), linear()), "model", "mixes the examples", id="by the mean of all"),
        pytest.param(Recurrent, "layer rnn", "use Conv1d over the series", id="lstm"),
        pytest.param(stack(nn.Flatten(), Buffered()), "layer 1", "keeps buffers", id="buffers"),
        pytest.param(Forgetful, "parameter unused.weight", "is it used in forward?", id="unused layer"),
        pytest.param(frozen, "model", "no parameter to train", id="nothing to train"),
        pytest.param(
            Shared, "model", "not made anew whenever it is asked for: parameter head.weight is that", id="a cached head"
        ),
    ],
)
def test_a_model_that_cannot_learn_privately_is_explained(
    model: Callable[[], nn.Module], subject: str, message: str
) -> None:
    (finding,) = check(task(model), SETTINGS, content)
    assert (finding.level, finding.subject) == ("error", subject)
    assert message in finding.message
    assert "\n" not in finding.message


@pytest.mark.parametrize(
    ("model", "parameter"),
    [
        pytest.param(conv(padding=1, padding_mode="circular"), "0.weight", id="circular padding"),
        pytest.param(conv(padding=1, padding_mode="reflect"), "0.weight", id="reflected padding"),
        pytest.param(Words, "vectors.weight", id="a vector that is not trained"),
    ],
)
def test_gradients_per_example_that_do_not_add_up_to_the_gradient_are_refused(
    model: Callable[[], nn.Module], parameter: str
) -> None:
    (finding,) = check(task(model), SETTINGS, content)
    assert (finding.level, finding.subject) == ("error", f"parameter {parameter}")
    assert "do not add up to that of the batch" in finding.message


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(conv(padding=1), id="padding with zeros"),
        pytest.param(conv(padding=2, dilation=2, groups=2), id="groups"),
        pytest.param(stack(nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(72, 3)), id="group norm"),
        pytest.param(stack(nn.Conv1d(2, 4, 3), nn.InstanceNorm1d(4), nn.Flatten(), nn.Linear(72, 3)), id="no gradient"),
        pytest.param(stack(nn.Unflatten(1, (1, 2)), nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(38, 3)), id="2 axes"),
        pytest.param(stack(nn.Flatten(), nn.Dropout(0.5), nn.Linear(40, 3)), id="drawn at random"),
        pytest.param(Twice, id="asked twice"),
    ],
)
def test_gradients_that_add_up_to_rounding_are_not_complained_of(model: Callable[[], nn.Module]) -> None:
    assert check(task(model), SETTINGS, content) == []


@pytest.mark.parametrize(
    ("train", "message"),
    [
        pytest.param(replaced(np.nan), "window 3: x: NaN", id="NaN"),
        pytest.param(replaced(np.inf), "window 3: x: NaN or infinite", id="infinite"),
        pytest.param(windows(label=3), "window 0: label 3", id="label too high"),
        pytest.param(windows(label=-1), "window 0: label -1", id="label below 0"),
        pytest.param(Windows(windows().x[:, :, :9], windows().y), "shape (2, 9)", id="shape"),
        pytest.param(Windows(windows().x[:0, 0, 0], windows().y[:0]), "shape ()", id="shape of no windows"),
        pytest.param(Windows(windows().x.astype(np.float64), windows().y), "dtype float64", id="dtype"),
        pytest.param(
            Windows(windows().x, windows().y + 0.5),  # type: ignore[arg-type] # that is the fault
            "labels are float64",
            id="labels with a fraction",
        ),
        pytest.param(Windows(windows().x, windows().y[:, None]), "labels have shape (8, 1)", id="column of labels"),
    ],
)
def test_data_that_breaks_the_signature_is_named_by_device_and_window(train: Windows, message: str) -> None:
    findings = check(task(devices=device(train)), SETTINGS, content)
    assert [(f.level, f.subject) for f in findings] == [("error", f"device d{i}, train") for i in range(8)]
    assert message in findings[0].message


@pytest.mark.parametrize(
    ("donor", "message"),
    [
        pytest.param(missing, "fails: FileNotFoundError: model.txt", id="cannot be read"),
        pytest.param(lambda: None, "is None, not Windows", id="nothing"),
        pytest.param(lambda: replaced(np.nan), "window 3: x: NaN", id="NaN"),
        pytest.param(lambda: windows(label=12), "window 0: label 12", id="label too high"),
        pytest.param(lambda: Windows(windows().x[:, :, :9], windows().y), "shape (2, 9)", id="shape"),
        pytest.param(lambda: Windows(windows().x.astype(np.float64), windows().y), "dtype float64", id="dtype"),
        pytest.param(lambda: Windows(windows().x, windows().y[1:]), "8 windows but 7 labels", id="lengths"),
    ],
)
def test_a_donor_that_release_0_cannot_be_fitted_to_is_one_line(donor: Callable[[], Any], message: str) -> None:
    (finding,) = check(replace(task(), donor=donor), SETTINGS, content)
    assert (finding.level, finding.subject) == ("error", "donor")
    assert message in finding.message


@pytest.mark.parametrize(("scale", "said"), [(1.0, None), (2.0, "50.5%"), (20.0, "94.9%")])
def test_readings_outside_the_range_are_warned_of_with_their_share(scale: float, said: str | None) -> None:
    far = Windows(windows().x * np.float32(scale), windows().y)
    fleet = task(devices=device(far, Windows(LATER * np.float32(scale), np.zeros(80, np.int64))))
    found = check(replace(fleet, donor=lambda: far), SETTINGS, content)
    assert [(f.level, f.subject) for f in found] == ([("warning", "donor"), ("warning", "devices")] if said else [])
    assert all("of the readings lie outside -3 to 3, and are clipped" in f.message for f in found)
    assert said is None or said in found[1].message


def test_a_spike_that_is_clipped_is_not_worth_a_warning() -> None:
    assert check(task(devices=device(replaced(100.0))), SETTINGS, content) == []


def test_a_donor_shares_what_it_likes_and_may_be_empty() -> None:
    for public in (windows(5), Windows(windows().x[:0], windows().y[:0])):
        assert check(replace(task(), donor=lambda public=public: public), SETTINGS, content) == []


@pytest.mark.parametrize(("stride", "group"), [(20, 1), (15, 2), (10, 2), (7, 3), (5, 4), (4, 5)])
def test_overlapping_windows_need_their_number_declared(stride: int, group: int) -> None:
    overlapping = device(windows(stride))
    assert check(task(devices=overlapping, group=group), SETTINGS, content, lambda _: 100) == []
    if group > 1:
        (finding,) = check(task(devices=overlapping, group=group - 1), SETTINGS, content, lambda _: 100)
        assert finding.level == "error"
        assert f"group={group})" in finding.message


def test_a_device_without_training_windows_hides_no_overlap_and_no_window_on_two_devices() -> None:
    fleet = device(windows(10))()
    fleet["d5"].live.x[3] = fleet["d2"].train.x[7]
    fleet["late"] = Recording("p9", Windows(windows().x[:0], windows().y[:0]), Windows(LATER / 2, fleet["d0"].live.y))
    found = check(task(devices=lambda: fleet), SETTINGS, content)
    assert [(f.level, f.subject) for f in found if f.subject.startswith("device ")] == [
        ("warning", "device late, train"),
        ("error", "device d0"),
        ("error", "device d5"),
    ]


def test_an_overlap_is_found_whichever_axis_is_time() -> None:
    series = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
    half = [series[start : start + 20] for start in range(0, 380, 10)]
    assert most_windows(np.stack(half)) == most_windows(np.stack([w.T for w in half])) == 2
    assert most_windows(np.stack(half[::2])) == 1


def test_a_window_stored_twice_is_an_overlap() -> None:
    twice = Windows.joined([windows(), Windows(LATER, np.zeros(80, np.int64))])
    (finding,) = check(task(devices=device(windows(), live=twice)), SETTINGS, content)
    assert "lies in 2 windows" in finding.message


def test_the_order_of_the_windows_hides_no_overlap() -> None:
    mixed = windows(10)
    order = np.random.default_rng(1).permutation(len(mixed))
    (finding,) = check(task(devices=device(Windows(mixed.x[order], mixed.y))), SETTINGS, content)
    assert "group=2" in finding.message


def test_a_window_on_two_devices_is_refused_and_silence_on_all_of_them_is_not() -> None:
    fleet = device(windows())()
    for seen in fleet.values():
        seen.train.x[0] = 0
    assert check(task(devices=lambda: fleet), SETTINGS, content) == []
    fleet["d5"].live.x[3] = fleet["d2"].train.x[7]
    assert check(task(devices=lambda: fleet), SETTINGS, content) == [
        Finding("error", "device d5", "holds a window of device d2 too: give each window to one device")
    ]


@pytest.mark.parametrize("value", [0.0, 1.5])
def test_silence_is_no_overlap(value: float) -> None:
    quiet: npt.NDArray[np.float32] = np.full((8, 2, 20), value, np.float32)
    assert check(task(devices=device(Windows(quiet, np.zeros(8, np.int64)))), SETTINGS, content) == []


def test_devices_that_cannot_be_read_are_one_line() -> None:
    assert check(task(devices=missing), SETTINGS, content) == [
        Finding("error", "devices", "fails: FileNotFoundError: model.txt")
    ]


def test_devices_of_one_person_are_mentioned() -> None:
    def alone() -> dict[str, Recording]:
        return {name: replace(seen, person="p") for name, seen in device(windows())().items()}

    (finding,) = check(task(devices=alone), SETTINGS, content)
    assert (finding.level, finding.subject) == ("warning", "devices")
    assert "a simulation holds one out" in finding.message


def test_data_that_end_the_program_are_a_finding() -> None:
    (finding,) = check(task(devices=lambda: sys.exit("bye")), SETTINGS, content)
    assert finding == Finding("error", "devices", "fails: SystemExit: bye")


@pytest.mark.parametrize(
    ("devices", "subject", "message"),
    [
        pytest.param(None, "devices", "returns None, not a dict", id="nothing"),
        pytest.param([Recording("p", windows(), windows())], "devices", "returns a list", id="a list"),
        pytest.param(
            {"d0": Recording(np.int64(3), windows(), windows())},  # type: ignore[arg-type]
            "device d0",
            "its person is a int64, not a name: use str(...)",
            id="a person by number",
        ),
        pytest.param({"d0": (windows(), windows())}, "device 'd0'", "is a tuple, not a Recording", id="a tuple"),
        pytest.param(
            {"d0": Recording("p", windows(), None)}, "device d0, live", "is None, not Windows", id="no windows"
        ),  # type: ignore[arg-type]
        pytest.param(
            {"d0": Recording("p", Windows([1.0], [0]), windows())},  # type: ignore[arg-type]
            "device d0, train",
            "numpy arrays",
            id="lists of numbers",
        ),
    ],
)
def test_recordings_of_another_kind_are_one_line(devices: Any, subject: str, message: str) -> None:
    (finding,) = check(task(devices=lambda: devices), SETTINGS, content)
    assert (finding.level, finding.subject) == ("error", subject)
    assert message in finding.message


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/b", "/etc", "a\0b", ".hidden", "-rf", "a b", "d\n", "é", "x" * 64, 7]
)
def test_a_device_whose_name_is_no_name_for_a_folder_is_refused(name: Any) -> None:
    seen = Recording("p", windows(), windows(begin=200))
    (finding,) = check(task(devices=lambda: {name: seen}), SETTINGS, content)
    assert (finding.level, finding.subject) == ("error", "devices")
    assert "letter or digit first" in finding.message
    assert len(finding.message) < 200


def test_a_shadow_that_outlasts_every_stream_is_warned_of() -> None:
    short = device(windows(), live=Windows(windows(begin=200).x[:7], windows().y[:7]))
    (finding,) = check(task(devices=short), SETTINGS, content)
    assert (finding.level, finding.subject) == ("warning", "release.shadow_windows")
    assert "8, but no device has more than 7 live windows" in finding.message


@pytest.mark.parametrize(("hours", "warned"), [(20, False), (19, True)])
def test_patience_that_ends_before_a_simulated_report_is_warned_of(hours: int, warned: bool) -> None:
    found = check(task(), SETTINGS.changed(release={"patience": timedelta(hours=hours)}), content)
    assert [f.subject for f in found] == (["release.patience"] if warned else [])
    if warned:
        assert "19 hours" in found[0].message
        assert "a report takes 20" in found[0].message


@pytest.mark.parametrize(
    ("lasting", "rounds", "warned"),
    [
        pytest.param(8, 20, False, id="all streams last"),
        pytest.param(6, 20, False, id="enough for every wave's quorum"),
        pytest.param(5, 20, True, id="too few"),
        pytest.param(5, 2, False, id="releases are offered by hand"),
    ],
)
def test_streams_that_end_before_the_last_wave_are_warned_of(lasting: int, rounds: int, warned: bool) -> None:
    taken = 4 + 8 + 3 * 20
    later = [Windows(LATER[: taken - (i >= lasting)], np.zeros(taken - (i >= lasting), np.int64)) for i in range(8)]
    fleet = {f"d{i}": Recording(f"p{i}", of_device(i, windows()), of_device(i, live)) for i, live in enumerate(later)}
    found = check(task(devices=lambda: fleet), SETTINGS.changed(round={"rounds": rounds}), content)
    assert [f.subject for f in found] == (["live streams"] if warned else [])
    if warned:
        assert "takes 72 windows of a device" in found[0].message
        assert "5 of the task's 8 devices have so many" in found[0].message


def test_a_package_that_is_missing_is_no_fault_of_the_task() -> None:
    def absent() -> dict[str, Recording]:
        raise MissingExtraError("seglearn is missing: pip install 'edgefleet[simulate]'")

    with pytest.raises(MissingExtraError):
        check(task(devices=absent), SETTINGS, content)


def test_a_device_without_training_windows_is_mentioned() -> None:
    empty = Windows(windows().x[:0], windows().y[:0])
    findings = check(task(devices=device(empty)), SETTINGS, content)
    assert {f.level for f in findings} == {"warning"}
    assert "can only answer" in findings[0].message


def test_what_the_quantizer_says_is_passed_on() -> None:
    def unsure(task: Task, weights: Flat) -> Sequence[str]:
        return (f"{task.name}: unbounded before {weights.size} weights",)

    def refuse(task: Task, weights: Flat) -> Sequence[str]:
        raise TaskError("operator Foo is not supported")

    def fail(task: Task, weights: Flat) -> Sequence[str]:
        raise IndexError("axis 1 is out of bounds\nfor an array")

    assert check(task(), SETTINGS, fail) == [
        Finding("error", "quantizer", "fails: IndexError: axis 1 is out of bounds"),
    ]
    assert check(task(), SETTINGS, unsure) == [
        Finding("warning", "quantizer", "watch: unbounded before 123 weights"),
    ]
    assert check(task(), SETTINGS, refuse) == [Finding("error", "quantizer", "operator Foo is not supported")]


def test_answers_are_asked_about_where_nothing_is_wrong_before() -> None:
    asked = task(devices=device(replaced(np.nan)))
    said = Finding("warning", "quantizer", "watch answers otherwise")
    assert check(task(), SETTINGS, content, answer=lambda task: (f"{task.name} answers otherwise",)) == [said]
    assert said not in check(asked, SETTINGS, content, answer=lambda task: (f"{task.name} answers otherwise",))


def test_a_broken_model_is_not_sent_to_the_quantizer() -> None:
    def never(task: Task, weights: Flat) -> Sequence[str]:
        raise AssertionError("asked")

    assert check(task(missing), SETTINGS, never)


@pytest.mark.parametrize(
    ("section", "values", "subjects"),
    [
        pytest.param("privacy", {"epsilon": float("inf")}, ["privacy.epsilon"], id="no privacy"),
        pytest.param(
            "privacy",
            {"epsilon": 1e-300},
            ["release.waves", "release.shadow_windows", "privacy.epsilon"],
            id="nothing but noise",
        ),
        pytest.param("privacy", {"delta": 0.01}, ["privacy.delta"], id="delta as likely as an example"),
        pytest.param("privacy", {"planned_releases": 39}, ["privacy.planned_releases"], id="steps left over"),
        pytest.param("round", {"min_updates": 9}, ["devices"], id="too few devices"),
        pytest.param("release", {"shadow_windows": 7}, ["release.shadow_windows"], id="no veto"),
        pytest.param("release", {"probation_windows": 10}, ["release.probation_windows"], id="no way back"),
    ],
)
def test_settings_that_promise_little_or_waste_are_warned_of(
    section: str, values: dict[str, Any], subjects: list[str]
) -> None:
    found = check(task(examples=20), SETTINGS.changed(**{section: values}), content)
    assert [(finding.level, finding.subject) for finding in found] == [("warning", subject) for subject in subjects]


@pytest.mark.parametrize(("epsilon", "warned"), [(8.0, False), (1.0, True)])
def test_a_first_wave_that_could_not_halt_whatever_happens_is_warned_of(epsilon: float, warned: bool) -> None:
    settings = SETTINGS.changed(privacy={"epsilon": epsilon}, release={"probation_windows": 11})
    found = [finding.message for finding in check_run(task(examples=20), settings) if "waves" in finding.subject]
    said = "1 of 8 devices are the first wave, with 11 windows each to judge it: "
    said += "too little to halt it, even if every answer turns wrong"
    assert found == [said] * warned


@pytest.mark.parametrize(
    ("nodes", "epsilon", "shown"),
    [
        pytest.param(16, float("inf"), None, id="no noise"),
        pytest.param(16, 8.0, None, id="as usual"),
        pytest.param(None, 3.0, "a gain of 15 points or more, and no smaller one: others will mostly be", id="noise"),
        pytest.param(4, 8.0, "a gain of 13 points or more, and no smaller one: others will mostly be", id="a few"),
        pytest.param(2, 0.5, "no gain at all: every release will mostly be", id="two who whisper"),
    ],
)
def test_a_fleet_that_sees_large_gains_only_is_warned_of(nodes: int | None, epsilon: float, shown: str | None) -> None:
    settings = SETTINGS.changed(privacy={"epsilon": epsilon})
    found = [
        f.message
        for f in check_run(task(examples=20), settings, lambda seen: nodes or len(seen))
        if f.subject == "release.shadow_windows"
    ]
    assert found == ([f"8 windows of each of {nodes or 8} devices show {shown} kept back"] if shown else [])


def test_a_budget_that_buys_no_report_is_a_finding_of_the_settings_alone() -> None:
    (finding,) = check(task(examples=20), SETTINGS.changed(privacy={"epsilon": 1e-9, "delta": 1e-300}), content)
    assert (finding.level, finding.subject) == ("error", "privacy.epsilon")


@pytest.mark.parametrize("delta", [0.05, 0.9])
def test_a_delta_as_likely_as_that_of_an_example_is_published_is_an_error(delta: float) -> None:
    (finding,) = check(task(examples=20), SETTINGS.changed(privacy={"delta": delta}), content)
    assert (finding.level, finding.subject) == ("error", "privacy.delta")


def test_checking_leaves_the_dice_and_the_data_alone() -> None:
    before = torch.random.get_rng_state()
    seen = windows()
    kept = seen.x.copy()
    checked = task(devices=device(seen), model=stack(nn.Flatten(), nn.Dropout(0.5), nn.Linear(40, 3)))
    torch.random.set_rng_state(before)
    assert check(checked, SETTINGS, content) == []
    assert np.array_equal(seen.x, kept)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("windows", "said"),
    [(2, ["2, and a node is sure of harm after 11 at least: no node can go back by itself"]), (11, [])],
)
def test_a_probation_in_which_no_node_could_go_back_is_told(windows: int, said: list[str]) -> None:
    settings = Settings().changed(release={"probation_windows": windows})
    found = check(task(), settings, content)
    assert [one.message for one in found if one.subject == "release.probation_windows"] == said


@pytest.mark.parametrize(
    ("name", "rate", "said"),
    [
        ("FedAvgM", 1.0, []),
        ("FedAdam", 0.1, []),
        ("FedAdam", 1.0, ["1: a round of FedAdam moves every weight by about 1, however little was learned"]),
        ("FedAdagrad", 0.5, ["0.5: a round of FedAdagrad moves every weight by about 0.5, however little was learned"]),
        ("FedYogi", 0.1, ["0.1: a round of FedYogi moves every weight by about 1, however little was learned"]),
        ("FedYogi", 0.01, []),
    ],
)
def test_a_server_step_longer_than_weights_are_is_warned_of(name: str, rate: float, said: list[str]) -> None:
    step = {"server_step": f"flwr.serverapp.strategy:{name}", "server_learning_rate": rate}
    found = [f for f in check_run(task(), SETTINGS.changed(round=step)) if f.subject == "round.server_learning_rate"]
    assert [f.message.partition(": use ")[0] for f in found] == said
    assert {f.level for f in found} <= {"warning"}
