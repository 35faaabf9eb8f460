"""What would not work about the data of a task: its donor's, and its devices'."""

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from fleet.enrolment import check_name
from fleet.errors import FleetError, InputError, MissingExtraError, UsageError
from fleet.evidence_check import check_evidence
from fleet.finding import Finding, failure, said
from fleet.overlaps import most_windows, on_two_devices
from fleet.settings import Settings
from fleet.task import Recording, Task, Windows

Count = Callable[[dict[str, Recording]], int]
CLIPPED = 0.01  # of the readings, before it is said


def check_data(task: Task, settings: Settings, taking_part: Count = len) -> Iterator[Finding]:
    """What is wrong with the data: what a window must be, labels, overlaps that the unit does not declare.

    ``taking_part`` is how many of the devices make up the fleet; it is asked about recordings that are right.
    """
    if task.donor:
        yield from _loaded("donor", task.donor, lambda public: _donor(task, public))
    yield from _loaded("devices", task.devices, lambda recordings: _recordings(task, settings, taking_part, recordings))


def _loaded(
    subject: str, load: Callable[[], object], findings: Callable[[Any], Iterator[Finding]]
) -> Iterator[Finding]:
    """What there is to say of the data that the author's code loads, or of its failing."""
    try:
        loaded = load()
    except MissingExtraError:
        raise
    except FleetError as error:
        yield failure(subject, str(error))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the author's code may raise anything
        yield failure(subject, f"fails: {said(error)}")
    else:
        yield from findings(loaded)


def _donor(task: Task, public: Any) -> Iterator[Finding]:
    problem = _no_windows(public) or _problem(task, public)
    if problem:
        yield failure("donor", problem)
    else:
        yield from _clipped(task, "donor", [public])


def _recordings(
    task: Task, settings: Settings, taking_part: Count, recordings: dict[str, Recording]
) -> Iterator[Finding]:
    wrong = list(_misshapen(recordings))
    yield from wrong
    if wrong:
        return
    if len(recordings) < settings.round.min_updates:
        found = f"{len(recordings)} devices, but a round needs round.min_updates = {settings.round.min_updates}"
        yield Finding("warning", "devices", f"{found}: a simulation makes do with half of them, a fleet waits for more")
    if len({recording.person for recording in recordings.values()}) == 1:
        yield Finding("warning", "devices", "belong to one person, and a simulation holds one out: it cannot play them")
    about = [finding for name, recording in recordings.items() for finding in _recording(task, name, recording)]
    yield from about
    if not any(finding.level == "error" for finding in about):
        yield from _clipped(task, "devices", [part for seen in recordings.values() for part in (seen.train, seen.live)])
        yield from _undeclared_overlap(task, recordings)
        yield from _one_window_on_two_devices(recordings)
        yield from _streams(settings, [len(seen.live) for seen in recordings.values()])
        yield from check_evidence(task, settings, taking_part(recordings)) if recordings else ()


def _misshapen(recordings: object) -> Iterator[Finding]:
    """Whatever is not a dict of recordings by the names of nodes."""
    if not isinstance(recordings, dict):
        yield failure("devices", f"returns {_kind(recordings)}, not a dict of Recording by device name")
        return
    for name, recording in recordings.items():
        try:
            check_name(name if isinstance(name, str) else "")
        except UsageError as error:
            yield failure("devices", str(error))
        if not isinstance(recording, Recording):
            yield failure(f"device {name!r:.80}", f"is {_kind(recording)}, not a Recording")
            continue
        if not isinstance(recording.person, str):
            yield failure(f"device {name}", f"its person is {_kind(recording.person)}, not a name: use str(...)")
        for part, windows in (("train", recording.train), ("live", recording.live)):
            problem = _no_windows(windows)
            if problem:
                yield failure(f"device {name}, {part}", problem)


def _no_windows(value: Any) -> str | None:
    """Why it is no ``Windows`` of arrays, in words; None if it is."""
    if not isinstance(value, Windows):
        return f"is {_kind(value)}, not Windows"
    if not all(isinstance(array, np.ndarray) for array in (value.x, value.y)):
        return "x and y must be numpy arrays"
    return None


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _streams(settings: Settings, lengths: Sequence[int]) -> Iterator[Finding]:
    """Windows are used once, and a simulation gives a device one an hour: patience, and they, must outlast a rollout.

    ``lengths`` are the live windows of each device.
    """
    rollout, hours = settings.release, settings.release.patience / timedelta(hours=1)
    if (quota := max(rollout.shadow_windows, rollout.probation_windows)) > hours:
        found = f"{hours:g} hours, in which a simulated device sees as many windows, and a report takes {quota}"
        yield Finding("warning", "release.patience", f"{found}: a simulation gives releases up before they are judged")
    if rollout.shadow_windows > (longest := max(lengths, default=0)):
        found = f"{rollout.shadow_windows}, but no device has more than {longest} live windows"
        yield Finding("warning", "release.shadow_windows", f"{found}: a simulation of them promotes nothing")
        return
    if rollout.every_rounds > settings.round.rounds:  # releases are offered by hand
        return
    taken = rollout.every_rounds + rollout.shadow_windows + len(rollout.waves) * rollout.probation_windows
    lasting = sum(length >= taken for length in lengths)
    if lasting < rollout.quorum(len(lengths)):
        found = f"with the rounds before it, a release takes {taken} windows of a device until the last wave has judged"
        few = f"{lasting} of the task's {len(lengths)} devices have so many"
        yield Finding("warning", "live streams", f"{found} it, and {few}: a simulation of them may end before")


def _recording(task: Task, name: str, recording: Recording) -> Iterator[Finding]:
    for part, windows in (("train", recording.train), ("live", recording.live)):
        subject = f"device {name}, {part}"
        problem = _problem(task, windows)
        if problem:
            yield failure(subject, problem)
        elif len(windows) == 0 and part == "train":
            yield Finding("warning", subject, "has no windows: the device can only answer")


def _problem(task: Task, windows: Windows) -> str | None:
    """The first thing wrong with the windows, in words."""
    if windows.y.dtype.kind not in "iu":
        return f"labels are {windows.y.dtype}, not whole numbers"
    if windows.y.ndim != 1:
        return f"labels have shape {windows.y.shape}, not one number a window"
    if windows.x.shape[1:] != task.signature.shape:
        return f"windows have shape {windows.x.shape[1:]}, the task takes {task.signature.shape}"
    for index, (x, label) in enumerate(zip(windows.x, windows.y, strict=True)):
        try:
            task.signature.check(x)
            task.signature.check_label(int(label))
        except InputError as error:
            return f"window {index}: {error}"
    return None


def _clipped(task: Task, subject: str, parts: Sequence[Windows]) -> Iterator[Finding]:
    """A spike may be clipped; a range that is too narrow takes away what there is to learn."""
    signature = task.signature
    outside = sum(int((signature.clipped(part.x) != part.x).sum()) for part in parts)
    share = outside / max(sum(part.x.size for part in parts), 1)
    if share > CLIPPED:
        found = f"{share:.1%} of the readings lie outside {signature.low:g} to {signature.high:g}, and are clipped"
        yield Finding("warning", subject, f"{found}: scale them, or widen the signature's low and high")


def _undeclared_overlap(task: Task, recordings: dict[str, Recording]) -> Iterator[Finding]:
    """The promise is about one window; a stretch of data that lies in several needs their number declared."""
    found = {name: most_windows(_together(seen)) for name, seen in recordings.items()}
    name = max(found, key=lambda device: found[device], default="")
    if name and found[name] > task.unit.group:
        yield failure(
            f"device {name}",
            f"the same stretch of data lies in {found[name]} windows: cut windows that do not overlap, "
            f"or declare PrivacyUnit({task.unit.name!r}, group={found[name]})",
        )


def _one_window_on_two_devices(recordings: dict[str, Recording]) -> Iterator[Finding]:
    """What a window costs stands in the ledger of its device, and no ledger knows of another."""
    found = on_two_devices({name: _together(seen) for name, seen in recordings.items()})
    if found:
        first, second = found
        yield failure(f"device {second}", f"holds a window of device {first} too: give each window to one device")


def _together(recording: Recording) -> npt.NDArray[np.float32]:
    return np.concatenate([part.x for part in (recording.train, recording.live) if len(part)] or [recording.train.x])
