"""The log of events: what happened, a line each, and never a reason to stop."""

import errno
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fleet import durable
from fleet.events import LONGEST_TEXT, MAX_BYTES, EventLog, read_events, sparing
from tests.conftest import fill

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_event_that_cannot_be_written_stops_nothing_and_the_next_one_counts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.jsonl"
    record = EventLog(path, lambda: NOW).record("n1")

    def full(path: Path, line: str, *, max_bytes: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(durable, "append_line", full)
        record("started")
        record("kept", part="pull")
    record("kept", part="settle")
    record("stopped")
    assert [(line["event"], line.get("lost")) for line in lines(path)] == [("kept", 2), ("stopped", None)]


def test_a_disk_that_is_filled_by_half_a_line_keeps_whole_lines(small_disk: Path) -> None:
    path = small_disk / "events.jsonl"
    record = EventLog(path, lambda: NOW).record("n1")
    durable.append_line(path, json.dumps({"by": "x" * (small_disk.stat().st_blksize - 80)}), max_bytes=MAX_BYTES)
    rest = fill(small_disk)
    for _ in range(9):
        record("kept", reason="no space left on device")
    kept = lines(path)
    rest.unlink()
    record("stopped")
    assert lines(path) == [*kept, {"at": NOW.isoformat(), "who": "n1", "event": "stopped", "lost": 10 - len(kept)}]
    assert 1 <= len(kept) < 10


@pytest.mark.parametrize(
    "spoiled",
    [
        pytest.param(b'{"at": "2026-12-0', id="half a line"),
        pytest.param(b"\xff\xfe\x00", id="no text"),
        pytest.param(b"[1, 2]", id="no object"),
        pytest.param(b'{"who": "n1", "event": "started"}', id="no time"),
        pytest.param(b'{"at": "later", "who": "n1", "event": "started"}', id="a time that is none"),
        pytest.param(b'{"at": "2026-12-01T12:00:00", "who": "n1", "event": "started"}', id="a time of nowhere"),
        pytest.param(b'{"at": "2026-12-01T12:00:00+00:00", "who": "n1"}', id="no name"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_a_line_that_is_no_event_hides_no_other(tmp_path: Path, spoiled: bytes) -> None:
    path = tmp_path / "events.jsonl"
    record = EventLog(path, lambda: NOW).record("n1")
    record("started")
    with path.open("ab") as file:
        file.write(spoiled + b"\n")
    record("stopped")
    assert [event["event"] for event in read_events(path)] == ["started", "stopped"]


def test_a_log_that_was_never_begun_has_no_events(tmp_path: Path) -> None:
    assert list(read_events(tmp_path / "events.jsonl")) == []


def test_a_megabyte_from_outside_is_no_megabyte_in_the_log(tmp_path: Path) -> None:
    EventLog(tmp_path / "events.jsonl", lambda: NOW).record("coordinator")("refused", reason="x" * 10**6, round=1)
    (line,) = lines(tmp_path / "events.jsonl")
    assert (line["reason"], line["round"]) == ("x" * LONGEST_TEXT, 1)


def test_a_flood_pushes_nothing_else_out_of_the_log() -> None:
    told: list[int] = []
    now = 0.0
    record = sparing(lambda event, **fields: told.append(fields["number"]), lines=3, clock=lambda: now)
    for number in range(10):
        record("request-refused", number=number)
    assert told == [0, 1, 2]
    now += 2
    for number in range(10, 20):
        record("request-refused", number=number)
    assert told == [0, 1, 2, 10, 11]
