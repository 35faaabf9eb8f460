"""Instructions that a node obeys, messages that travel, and deltas that are what they say."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import ExpiredError, RefusedError, SignatureError, TrustError
from fleet.messages import (
    Instruction,
    Report,
    ReportInstruction,
    Update,
    UpdateInstruction,
    Watch,
    decode,
    encode,
    update_key,
)
from fleet.signing import MAX_BODY_BYTES, Sealed, _message, canonical, seal, unseal

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
THIEF = Ed25519PrivateKey.from_private_bytes(bytes(32))
NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
SOON = NOW + timedelta(minutes=5)
UPDATE = UpdateInstruction("toy", SOON, round=7, base=3, base_digest="ab" * 32)
REPORT = ReportInstruction("toy", SOON, release=2, watch=Watch.SHADOW, quota=10)
FIELDS = UPDATE.fields()


def signed(body: bytes, purpose: str = "update-instruction") -> Sealed:
    return Sealed(body, KEY.sign(_message(purpose, body)))


def with_fields(**fields: object) -> Sealed:
    return seal("update-instruction", FIELDS | fields, KEY)


def without(name: str) -> Sealed:
    return seal("update-instruction", {key: value for key, value in FIELDS.items() if key != name}, KEY)


@pytest.mark.parametrize("instruction", [UPDATE, REPORT], ids=["update", "report"])
def test_an_instruction_of_the_coordinator_is_obeyed(instruction: Instruction) -> None:
    assert type(instruction).verified(instruction.sealed(KEY), KEY.public_key(), now=NOW) == instruction


@pytest.mark.parametrize(
    ("sealed", "error"),
    [
        pytest.param(Sealed(b"", b""), SignatureError, id="empty"),
        pytest.param(Sealed(UPDATE.sealed(KEY).body, b""), SignatureError, id="unsigned"),
        pytest.param(UPDATE.sealed(THIEF), SignatureError, id="forged"),
        pytest.param(REPORT.sealed(KEY), SignatureError, id="for another purpose"),
        pytest.param(signed(UPDATE.sealed(KEY).body, "update"), SignatureError, id="a node's message echoed"),
        pytest.param(replace(UPDATE, expires=NOW).sealed(KEY), ExpiredError, id="expires now"),
        pytest.param(replace(UPDATE, expires=NOW - timedelta(days=9)).sealed(KEY), ExpiredError, id="expired"),
        pytest.param(signed(UPDATE.sealed(KEY).body.rjust(MAX_BODY_BYTES + 1)), SignatureError, id="oversized"),
        pytest.param(signed(b'{"task":NaN,"v":1}'), SignatureError, id="NaN"),
        pytest.param(signed(canonical(FIELDS | {"v": 1}).replace(b":7", b":NaN")), SignatureError, id="round NaN"),
        pytest.param(signed(canonical(FIELDS | {"v": 1}).replace(b":7", b":1e999")), SignatureError, id="infinite"),
        pytest.param(signed(b"[" * 10_000), SignatureError, id="deep nesting"),
        pytest.param(with_fields(round=[[]]), SignatureError, id="a list for a number"),
        pytest.param(with_fields(round="7"), SignatureError, id="text for a number"),
        pytest.param(with_fields(round=7.0), SignatureError, id="a fraction"),
        pytest.param(with_fields(round=True), SignatureError, id="a bool for a number"),
        pytest.param(with_fields(round=2**63), SignatureError, id="over 63 bits"),
        pytest.param(with_fields(task=None), SignatureError, id="null for a text"),
        pytest.param(with_fields(expires=0), SignatureError, id="a number for a time"),
        pytest.param(with_fields(expires="tomorrow"), SignatureError, id="no time"),
        pytest.param(with_fields(expires="2027-01-01T00:00:00"), SignatureError, id="a time without zone"),
        pytest.param(with_fields(expires="9999-12-31T23:00:00-23:00"), SignatureError, id="a time after all times"),
        *[pytest.param(without(name), SignatureError, id=f"without {name}") for name in FIELDS],
    ],
)
def test_an_instruction_that_is_not_the_coordinator_s_is_refused(sealed: Sealed, error: type[TrustError]) -> None:
    with pytest.raises(error):
        UpdateInstruction.verified(sealed, KEY.public_key(), now=NOW)


def test_an_instruction_altered_anywhere_is_refused() -> None:
    sealed = UPDATE.sealed(KEY)
    for i in range(len(sealed.body)):
        for altered in (sealed.body[:i], sealed.body[:i] + bytes([sealed.body[i] ^ 4]) + sealed.body[i + 1 :]):
            with pytest.raises(SignatureError):
                UpdateInstruction.verified(replace(sealed, body=altered), KEY.public_key(), now=NOW)


@pytest.mark.parametrize("watch", ["", "serving", 1, ["shadow"], None])
def test_a_watch_that_does_not_exist_is_refused(watch: object) -> None:
    sealed = seal("report-instruction", REPORT.fields() | {"watch": watch}, KEY)
    with pytest.raises(SignatureError):
        ReportInstruction.verified(sealed, KEY.public_key(), now=NOW)


def test_times_are_compared_in_utc_whatever_zone_they_were_written_in() -> None:
    east = timezone(timedelta(hours=14))
    sealed = replace(UPDATE, expires=SOON.astimezone(east)).sealed(KEY)
    assert UpdateInstruction.verified(sealed, KEY.public_key(), now=NOW).expires.tzinfo is UTC
    with pytest.raises(ExpiredError):
        UpdateInstruction.verified(sealed, KEY.public_key(), now=SOON)


def test_an_update_says_nothing_of_counts_losses_or_accuracies() -> None:
    update = Update("n1", "toy", 7, 3, "ab", "key", "fleet.f32.v1", "cd", 11, 1, "ef")
    sealed = update.sealed(KEY)
    assert Update.of(unseal("update", sealed, KEY.public_key())) == update
    assert set(update.fields()) == {
        *("node", "task", "round", "base", "base_digest", "key", "codec", "payload_digest"),
        *("spent_mu2", "ledger_seq", "ledger_head"),
    }


def test_a_report_survives_the_wire() -> None:
    report = Report("n1", "toy", 2, Watch.PROBATION, 10, -3, 4, 1, "ef")
    assert Report.of(unseal("report", report.sealed(KEY), KEY.public_key())) == report


def test_an_update_is_counted_under_a_name_that_tells_every_part_apart() -> None:
    keys = {
        update_key("n1", "toy", 7, "ab"),
        update_key("n2", "toy", 7, "ab"),
        update_key("n1", "toys", 7, "ab"),
        update_key("n1", "toy", 8, "ab"),
        update_key("n1", "toy", 7, "abc"),
        update_key("n1t", "oy", 7, "ab"),
    }
    assert len(keys) == 6


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=9))
def test_a_delta_survives_the_wire(values: list[float]) -> None:
    delta = np.array(values, np.float32)
    np.testing.assert_array_equal(decode(encode(delta), len(values)), delta)


def test_a_delta_is_little_endian() -> None:
    assert encode(np.array([1], np.float32)) == encode(np.array([1], ">f4")) == b"\x00\x00\x80\x3f"


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        pytest.param(b"", "layout", id="empty"),
        pytest.param(bytes(11), "layout", id="a byte short"),
        pytest.param(bytes(13), "layout", id="a byte long"),
        pytest.param(bytes(8), "layout", id="a value short"),
        pytest.param(encode(np.array([0, np.nan, 0], np.float32)), "not-finite", id="NaN"),
        pytest.param(encode(np.array([0, 0, np.inf], np.float32)), "not-finite", id="infinite"),
        pytest.param(encode(np.array([-np.inf, 0, 0], np.float32)), "not-finite", id="minus infinite"),
    ],
)
def test_a_delta_that_is_not_one_is_refused(payload: bytes, code: str) -> None:
    with pytest.raises(RefusedError) as refused:
        decode(payload, 3)
    assert refused.value.code == code
