"""Signatures: by one key, for one purpose, over exact bytes."""

import math
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import SignatureError
from fleet.signing import MAX_BODY_BYTES, Sealed, _message, canonical, claimed, seal, sha256, unseal

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
FIELDS = {"task": "toy", "round": 7}
texts_or_numbers = st.one_of(st.text(), st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False, width=32))


def signed(body: bytes) -> Sealed:
    """Any bytes, signed by the right key: what a coordinator with a bug, or a thief of its key, can send."""
    return Sealed(body, KEY.sign(_message("update", body)))


@given(
    st.dictionaries(
        st.text().filter(lambda name: name != "v"),
        texts_or_numbers.filter(lambda x: x not in (math.inf, -math.inf)),
        max_size=5,
    )
)
def test_what_was_sealed_is_unsealed(fields: dict[str, object]) -> None:
    assert unseal("update", seal("update", fields, KEY), KEY.public_key()) == fields


@pytest.mark.parametrize(
    "record",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"body": "text", "signature": 1.0}, id="other kinds"),
        pytest.param({"body": [b"body"], "signature": None}, id="lists"),
    ],
)
def test_a_record_that_holds_nothing_signed_is_sealed_by_nobody(record: dict[str, object]) -> None:
    assert Sealed.of(record) == Sealed(b"", b"")
    with pytest.raises(SignatureError):
        unseal("update", Sealed.of(record), KEY.public_key())


def test_a_record_is_sealed_as_it_was_sent() -> None:
    sealed = seal("update", FIELDS, KEY)
    assert Sealed.of({"body": sealed.body, "signature": sealed.signature, "more": 1}) == sealed


def test_the_order_of_fields_does_not_matter() -> None:
    assert seal("update", {"a": 1, "b": 2}, KEY) == seal("update", {"b": 2, "a": 1}, KEY)


def test_another_key_s_signature_is_refused() -> None:
    with pytest.raises(SignatureError, match="does not fit"):
        unseal("update", seal("update", FIELDS, OTHER), KEY.public_key())


@pytest.mark.parametrize("purpose", ["report", "updat", "update-instruction", ""])
def test_a_signature_for_one_purpose_is_worthless_for_another(purpose: str) -> None:
    with pytest.raises(SignatureError, match="does not fit"):
        unseal("update", seal(purpose, FIELDS, KEY), KEY.public_key())


def test_no_purpose_can_be_spelled_into_the_body() -> None:
    tricky = Sealed(b"x\0" + canonical(FIELDS), b"")
    signature = KEY.sign(_message("update\0x", canonical(FIELDS)))
    with pytest.raises(SignatureError):
        unseal("update", replace(tricky, signature=signature), KEY.public_key())


def test_no_byte_can_be_changed() -> None:
    sealed = seal("update", FIELDS, KEY)
    for i in range(len(sealed.body)):
        body = sealed.body[:i] + bytes([sealed.body[i] ^ 1]) + sealed.body[i + 1 :]
        with pytest.raises(SignatureError, match="does not fit"):
            unseal("update", replace(sealed, body=body), KEY.public_key())
    for i in range(len(sealed.signature)):
        signature = sealed.signature[:i] + bytes([sealed.signature[i] ^ 1]) + sealed.signature[i + 1 :]
        with pytest.raises(SignatureError, match="does not fit"):
            unseal("update", replace(sealed, signature=signature), KEY.public_key())


@pytest.mark.parametrize("length", [0, 1, 63, 65, 1000])
def test_a_signature_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(SignatureError, match="does not fit"):
        unseal("update", Sealed(canonical(FIELDS), bytes(length)), KEY.public_key())


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(b"", "no JSON", id="empty"),
        pytest.param(b"{", "no JSON", id="cut off"),
        pytest.param(b"\xff", "no JSON", id="no text"),
        pytest.param(b"[" * 10_000, "no JSON", id="deep nesting"),
        pytest.param(b'{"a":' * 2700 + b"1" + b"}" * 2700, "no JSON", id="deep nesting that ends"),
        pytest.param(b'{"v": ' + b"9" * 5000 + b"}", "no JSON", id="a number of 5000 digits"),
        pytest.param(b"[1]", "no object", id="a list"),
        pytest.param(b"null", "no object", id="null"),
        pytest.param(b'{"a": 1}', "protocol", id="no version"),
        pytest.param(b'{"a": 1, "v": 2}', "protocol", id="a later version"),
        pytest.param(b'{"a": 1, "v": NaN}', "protocol", id="NaN for a version"),
        pytest.param(b" " * MAX_BODY_BYTES + b'{"v": 1}', "at most 16384 are read", id="oversized"),
    ],
)
def test_signed_nonsense_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(SignatureError, match=reason):
        unseal("update", signed(body), KEY.public_key())


def test_the_longest_body_is_read() -> None:
    body = canonical({"v": 1}).rjust(MAX_BODY_BYTES)
    assert unseal("update", signed(body), KEY.public_key()) == {}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_does_not_have_is_not_signed(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        seal("update", {"a": value}, KEY)


def test_a_body_claims_who_wrote_it_before_it_is_verified() -> None:
    assert claimed(Sealed(canonical({"node": "n1"}), b""), "node") == "n1"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"[" * 10_000, id="deep nesting"),
        pytest.param(b'["node"]', id="a list"),
        pytest.param(b'{"nod": "n1"}', id="missing"),
        pytest.param(b'{"node": 1}', id="a number"),
        pytest.param(b'{"node": "n1"}'.rjust(MAX_BODY_BYTES + 1), id="oversized"),
    ],
)
def test_a_body_that_claims_nothing_is_refused(body: bytes) -> None:
    with pytest.raises(SignatureError):
        claimed(Sealed(body, b""), "node")


def test_sha256_is_written_in_hex() -> None:
    assert sha256(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
