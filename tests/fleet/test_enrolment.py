"""Joining a fleet: what is carried over, what is proved, and whom the node believes afterwards."""

import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fleet.enrolment import PREFIX, Enrolment, Invitation, Welcome, check_name, decoded, encoded, pem
from fleet.errors import SignatureError, TrustError, UsageError
from fleet.settings import Settings
from fleet.signing import Sealed, seal, sha256, unseal
from fleet.task import Task

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
ROOT = b'{"signed": {}}'
SIGNER = Ed25519PrivateKey.generate()
COORDINATOR = SIGNER.public_key()
INVITATION = Invitation(
    url="https://fleet.example:8443",
    name="watch-07",
    secret="s" * 43,
    root=sha256(ROOT),
    key=sha256(COORDINATOR.public_bytes_raw()),
    authority="a" * 64,
)


def test_an_invitation_is_one_line_and_reads_back() -> None:
    line = str(INVITATION)
    assert line.startswith(PREFIX)
    assert "\n" not in line
    assert " " not in line
    assert Invitation.parse(f"  {line}\n") == INVITATION


def test_an_invitation_does_not_show_its_secret_where_values_are_printed() -> None:
    assert INVITATION.secret not in repr(INVITATION)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("hello", id="another thing"),
        pytest.param(str(INVITATION)[:-9], id="cut short"),
        pytest.param(PREFIX + "!!!!", id="no base64"),
        pytest.param(PREFIX + "é", id="not ASCII"),
        pytest.param(PREFIX + "bnVsbA", id="null"),
        pytest.param(PREFIX + "A" * 5000, id="too long"),
        pytest.param(str(replace(INVITATION, url="file:///etc/passwd")), id="another scheme"),
        pytest.param(str(replace(INVITATION, name="../x")), id="a path for a name"),
        pytest.param(str(replace(INVITATION, root="0")), id="half a fingerprint"),
        pytest.param(str(replace(INVITATION, secret="")), id="no secret"),
    ],
)
def test_what_is_no_whole_invitation_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="no whole invitation") as caught:
        Invitation.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", "-x", "x" * 64, "é", ".", "a\n"])
def test_a_name_that_could_be_a_path_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="name"):
        check_name(name)


def fields(**changed: Any) -> tuple[Ed25519PrivateKey, dict[str, Any]]:
    """What an honest node signs, with some fields replaced."""
    key, flower_key = Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())
    request = Enrolment.opened(Enrolment.sealed(INVITATION, key, flower_key, now=NOW))
    return key, request.fields() | changed


def test_a_request_opens_to_what_was_asked() -> None:
    key, flower_key = Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())
    request = Enrolment.opened(Enrolment.sealed(INVITATION, key, flower_key, now=NOW))
    assert (request.name, request.secret, request.time) == ("watch-07", INVITATION.secret, NOW)
    assert request.key == key.public_key()
    assert request.flower_key.encode() == pem(flower_key.public_key())


def foreign_pem(curve: ec.EllipticCurve) -> str:
    return pem(ec.generate_private_key(curve).public_key()).decode()


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(
            {"public_key": encoded(Ed25519PrivateKey.generate().public_key().public_bytes_raw())}, id="a foreign key"
        ),
        pytest.param({"public_key": "x"}, id="no key"),
        pytest.param({"flower_key": foreign_pem(ec.SECP384R1())}, id="somebody else's key for Flower"),
        pytest.param({"flower_key": foreign_pem(ec.SECP256R1())}, id="another curve"),
        pytest.param({"flower_key": "-----BEGIN"}, id="no PEM"),
        pytest.param({"flower_proof": ""}, id="no proof"),
        pytest.param({"flower_proof": "é"}, id="no base64"),
        pytest.param({"time": "yesterday"}, id="no time"),
    ],
)
def test_a_request_that_does_not_prove_both_keys_is_refused(changed: dict[str, Any]) -> None:
    key, honest = fields(**changed)
    with pytest.raises(SignatureError):
        Enrolment.opened(seal(Enrolment.PURPOSE, honest, key))


def test_a_key_for_flower_of_another_curve_is_refused_even_if_it_is_proved() -> None:
    other: Any = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(SignatureError, match="must be EC P-384"):
        Enrolment.opened(Enrolment.sealed(INVITATION, Ed25519PrivateKey.generate(), other, now=NOW))


def test_a_key_for_flower_is_written_in_one_way_only() -> None:
    key, honest = fields()
    twice = {"flower_key": "hello\n" + honest["flower_key"]}  # the same key to whoever parses it
    with pytest.raises(SignatureError, match="as it is usually written"):
        Enrolment.opened(seal(Enrolment.PURPOSE, honest | twice, key))


TASK = Task.of_spec(
    {
        "name": "toy",
        "signature": {"input": "x", "shape": [2], "low": -1.0, "high": 1.0, "classes": ["left", "right"]},
        "unit": {"name": "a point"},
        "training": {"learning_rate": 0.5, "examples": 10},
    }
)
WELCOME = Welcome("watch-07", ROOT, COORDINATOR, TASK, "task.py:TASK", Settings(), 2**64 - 5)


def resealed(changed: dict[str, Any]) -> dict[str, Any]:
    """The coordinator's welcome with other fields, sealed by it all the same."""
    answer = WELCOME.to_json(SIGNER)
    fields = unseal(Welcome.PURPOSE, Sealed(decoded(answer["body"]), decoded(answer["signature"])), COORDINATOR)
    sealed = seal(Welcome.PURPOSE, fields | changed, SIGNER)
    return answer | {"body": encoded(sealed.body), "signature": encoded(sealed.signature)} | changed


def test_a_welcome_reads_back_where_the_invitation_vouches_for_it() -> None:
    assert Welcome.checked(WELCOME.to_json(SIGNER), INVITATION) == WELCOME


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"name": "watch-08"}, id="for somebody else"),
        pytest.param({"root": encoded(b"{}")}, id="another root"),
        pytest.param({"instruction_key": encoded(bytes(32))}, id="another key"),
        pytest.param({"root": 7}, id="no text"),
        pytest.param({"task": None}, id="no task"),
        pytest.param({"settings": {"nonsense": {}}}, id="unknown settings"),
        pytest.param({"flower_id": "x"}, id="no number"),
    ],
)
def test_a_welcome_of_another_coordinator_is_believed_in_nothing(changed: dict[str, Any]) -> None:
    with pytest.raises(TrustError):
        Welcome.checked(resealed(changed), INVITATION)


def test_whoever_only_knows_the_root_is_believed_in_nothing() -> None:
    impostor = Ed25519PrivateKey.generate()
    with pytest.raises(TrustError, match="is not the coordinator that the invitation is from"):
        Welcome.checked(replace(WELCOME, instruction_key=impostor.public_key()).to_json(impostor), INVITATION)


@pytest.mark.parametrize("part", ["settings", "body", "signature"])
def test_a_welcome_that_somebody_altered_on_the_way_is_believed_in_nothing(part: str) -> None:
    foreign = Ed25519PrivateKey.generate()
    settings = Settings().changed(privacy={"epsilon": math.inf})
    other = replace(WELCOME, settings=settings).to_json(foreign)
    altered = {"body": other["body"], "signature": other["signature"]}
    if part != "settings":
        del altered["signature" if part == "body" else "body"]
    with pytest.raises(SignatureError):
        Welcome.checked(WELCOME.to_json(SIGNER) | altered, INVITATION)
