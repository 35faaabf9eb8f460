"""How a device becomes a node of a fleet: from an invitation to a release that answers."""

import math
import ssl
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fleet.enrolment import Invitation
from fleet.errors import UsageError
from fleet.events import EventLog
from fleet.signing import sha256
from node.agent import Agent
from node.coordinator_client import CoordinatorClient, CoordinatorClock, enrol
from node.errand import code_of
from node.fetcher import HttpFetcher
from node.identity import Identity, read_identity
from node.membership import Membership
from node.provisioning import provision
from node.store import open_store
from node.transport import Transport, shown_authority
from node.workshop import InProcess


def join(
    folder: Path,
    invitation: Invitation,
    reference: str,
    *,
    clock: Callable[[], datetime],
    max_epsilon: float = math.inf,
) -> Agent:
    """Enrol the node of ``folder`` and install its first release. Interrupted and called again, it goes on.

    Args:
        reference: Where the task's code is on this device; empty for a node that only answers, or that knows already.
        clock: This device's own time.
        max_epsilon: The most privacy that the device's owner agrees to spend.

    Raises:
        LinkError: The coordinator cannot be reached.
        RefusedError: It does not take this invitation.
        TaskError: ``reference`` cannot be loaded or is another task; called again with the right one, it goes on.
        TrustError: It is not the coordinator that the invitation is from.
        UsageError: The folder belongs to another node, another fleet or another coordinator already, or the fleet
            spends more privacy than ``max_epsilon``.
    """
    name = invitation.name
    membership = _membership(folder, invitation)
    transport = Transport(membership.url, authority=membership.authority or None)
    corrected = CoordinatorClock(clock)
    client = CoordinatorClient(transport, corrected, node=name, key=membership.key)
    identity = read_identity(folder) or _enrolled(folder, transport, corrected, invitation, membership)
    if (epsilon := identity.settings.privacy.epsilon) > max_epsilon:
        raise UsageError(
            f"this fleet spends epsilon {epsilon:g}, --max-epsilon is {max_epsilon:g}: agree to more, "
            f"or ask the operator to revoke {name}, whose invitation is used"
        )
    if reference:
        code_of(reference, identity.task)
        with closing(open_store(folder / "node.db")) as store:
            replace(membership, reference=reference).save(store)
    return provision(
        folder,
        lambda: identity,
        identity.task,
        workshop=InProcess(HttpFetcher(client)),
        clock=corrected,
        record=EventLog(folder / "events.jsonl", corrected).record(name),
    )


def _membership(folder: Path, invitation: Invitation) -> Membership:
    """The way to the coordinator, with keys that are on the disk before anybody hears of them."""
    with closing(open_store(folder / "node.db")) as store:
        identity, known = Identity.load(store), Membership.load(store)
        if identity:
            _check_same(folder, identity, known, invitation)
        if identity and known:
            return known
        membership = Membership(
            url=invitation.url,
            authority=shown_authority(invitation.url, invitation.authority) if invitation.authority else "",
            key=known.key if known else Ed25519PrivateKey.generate(),
            flower_key=known.flower_key if known else ec.generate_private_key(ec.SECP384R1()),
        )
        membership.save(store)
        return membership


def _check_same(folder: Path, identity: Identity, known: Membership | None, invitation: Invitation) -> None:
    """Nobody signed an invitation: it leads an enrolled node to no other place."""
    if identity.name != invitation.name:
        raise UsageError(f"{folder} is node {identity.name}; choose another --folder for {invitation.name}")
    if (sha256(identity.root), sha256(identity.pinned)) != (invitation.root, invitation.key):
        raise UsageError(f"{folder} is a node of another fleet; choose another --folder for {invitation.url}")
    authority = sha256(ssl.PEM_cert_to_DER_cert(known.authority)) if known and known.authority else ""
    if known and (known.url, authority) != (invitation.url, invitation.authority):
        raise UsageError(f"{folder} is a node of {known.url}, by another authority or address than {invitation.url}")


def _enrolled(
    folder: Path, transport: Transport, clock: CoordinatorClock, invitation: Invitation, membership: Membership
) -> Identity:
    welcome = enrol(transport, clock, invitation, membership.key, membership.flower_key)
    return Identity(
        name=welcome.name,
        secret=membership.key.private_bytes_raw(),
        pinned=welcome.instruction_key.public_bytes_raw(),
        root=welcome.root,
        settings=welcome.settings,
        task=welcome.task,
        flower_id=welcome.flower_id,
    )
