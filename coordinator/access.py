"""Who comes in: invites, enrols, hands out tokens, and takes it all back."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from coordinator.coordinator import Coordinator
from coordinator.tokens import Tokens
from fleet.enrolment import Enrolment, Invitation, TokenRequest, Welcome, check_name
from fleet.errors import RefusedError, SignatureError
from fleet.events import Record, ignore
from fleet.settings import Settings
from fleet.signing import Sealed, claimed, sha256, unseal
from fleet.task import Task

INVITATION_LIFE = timedelta(hours=24)
CLOCK_TOLERANCE = timedelta(minutes=5)
NONCE_LENGTHS = range(16, 65)


class Directory(Protocol):
    """Flower's own list of nodes."""

    def register(self, key: bytes) -> int:
        """Flower's id of the node with this key; the same key has the same id."""

    def unregister(self, key: bytes) -> None:
        """Listen to the node no more."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where devices find us, and what they should believe there: see ``Invitation`` and ``Welcome``."""

    url: str
    authority: str
    root: bytes
    task: Task
    reference: str
    settings: Settings


class Access:
    """The fleet's door. Every change is durable in the registry before anybody is told of it."""

    def __init__(
        self,
        coordinator: Coordinator,
        directory: Directory,
        tokens: Tokens,
        address: Address,
        *,
        clock: Callable[[], datetime],
        record: Record = ignore,
    ) -> None:
        """Bring Flower's list of nodes in line with the roster, which is the truth."""
        self._coordinator = coordinator
        self._registry = coordinator.registry
        self._directory = directory
        self._tokens = tokens
        self._address = address
        self._clock = clock
        self._record = record
        self._revoked: set[str] = set()
        self._reconcile()

    def invite(self, name: str) -> Invitation:
        """A one-time invitation, good for a day.

        Raises:
            UsageError: A node cannot be called so.
            RefusedError: ``name-taken``.
        """
        secret = secrets.token_urlsafe(32)
        self._registry.invitations.invite(check_name(name), secret, expires=self._clock() + INVITATION_LIFE)
        self._record("invited", node=name)
        key = self._coordinator.instruction_key.public_bytes_raw()
        address = self._address
        return Invitation(address.url, name, secret, sha256(address.root), sha256(key), address.authority)

    def enrol(self, sealed: Sealed) -> dict[str, Any]:
        """Let a node in that holds an invitation and both its keys; the answer is for ``Welcome.checked``.

        Raises:
            RefusedError: ``signature``, ``clock``, ``invitation`` or ``name-taken``.
        """
        try:
            request = Enrolment.opened(sealed)
        except SignatureError as error:
            raise RefusedError("signature", str(error)) from error
        self._check_clock(request.time)
        key = request.flower_key.encode()
        flower_id = self._registry.invitations.redeem(
            request, now=self._clock(), register=lambda: self._directory.register(key)
        )
        self._record("enrolled", node=request.name)
        address, instruction_key = self._address, self._coordinator.instruction_key
        welcome = Welcome(
            request.name, address.root, instruction_key, address.task, address.reference, address.settings, flower_id
        )
        return self._coordinator.sealed(welcome)

    def token(self, sealed: Sealed) -> tuple[str, datetime]:
        """A token for the node that signed the request, and when it expires.

        Raises:
            RefusedError: ``unknown-node``, ``revoked``, ``signature``, ``clock``, ``replayed`` or ``rate``.
        """
        try:
            name = claimed(sealed, "node")
            member = self._registry.roster.member(name)
            if member is None:
                raise RefusedError("unknown-node", f"no node {name[:80]!r} is enrolled")
            request = TokenRequest.of(unseal(TokenRequest.PURPOSE, sealed, member.key))
        except SignatureError as error:
            raise RefusedError("signature", str(error)) from error
        if member.revoked:
            raise RefusedError("revoked", f"{name} was revoked")
        self._check_clock(request.time)
        if len(request.nonce) not in NONCE_LENGTHS or not request.nonce.isascii():
            raise RefusedError("signature", f"a nonce has {NONCE_LENGTHS[0]} to {NONCE_LENGTHS[-1]} ASCII characters")
        now = self._clock()
        self._registry.roster.spend_nonce(name, request.nonce, expires=now + 2 * CLOCK_TOLERANCE, now=now)
        return self._tokens.mint(name, now=now)

    def authenticate(self, token: str) -> str:
        """The node that shows a token.

        Raises:
            RefusedError: ``token`` or ``revoked``.
        """
        name = self._tokens.read(token, now=self._clock())
        if name in self._revoked:
            raise RefusedError("revoked", f"{name} was revoked")
        return name

    def revoke(self, name: str) -> None:
        """Take a node out, at once: its updates, its tokens, its link.

        Raises:
            RefusedError: ``unknown-node``.
        """
        self._coordinator.revoke(name)
        self._revoked.add(name)  # at once, even if Flower cannot be told now
        self._reconcile()

    def _reconcile(self) -> None:
        """Whatever Flower forgot or was not told, because one of us was killed, it learns now."""
        for node in self._registry.roster.entries():
            if node.revoked:
                self._revoked.add(node.name)
            if not node.flower_key:
                continue
            if node.revoked:
                self._directory.unregister(node.flower_key)
            elif (number := self._directory.register(node.flower_key)) != node.flower_id:
                self._registry.roster.renumber(node.name, number)

    def _check_clock(self, time: datetime) -> None:
        now = self._clock()
        if abs(time - now) > CLOCK_TOLERANCE:
            raise RefusedError("clock", f"your clock says {time:%Y-%m-%d %H:%M:%S}, ours {now:%Y-%m-%d %H:%M:%S} UTC")
