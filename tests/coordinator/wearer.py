"""A node of a served coordinator, with the real link and honest updates but no model."""

import hashlib
import random
import threading
import time
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fleet.enrolment import Invitation, Welcome, pem
from fleet.flwr_compat import FleetApi
from fleet.messages import CODEC, Update, UpdateInstruction, encode, update_key
from fleet.signing import Sealed, sha256
from node.coordinator_client import CoordinatorClient, CoordinatorClock, enrol
from node.link import FlowerPost, Link
from node.transport import Transport
from tests.coordinator.conftest import delta_of, key_of


def clock() -> datetime:
    return datetime.now(UTC)


class Wearer:
    """Enrols, and answers every update instruction with the same bytes for the same round."""

    def __init__(self, invitation: Invitation, authority: str | None = None) -> None:
        self.name, self.url = invitation.name, invitation.url
        self.key = key_of(self.name)
        seed = int.from_bytes(hashlib.sha256(self.name.encode()).digest())
        self.flower_key = ec.derive_private_key(seed, ec.SECP384R1())
        self.transport = Transport(invitation.url, authority=authority)
        self.clock = CoordinatorClock(clock)
        self.welcome: Welcome = enrol(self.transport, self.clock, invitation, self.key, self.flower_key)
        self.client = CoordinatorClient(self.transport, self.clock, node=self.name, key=self.key)
        self.asked: list[int] = []
        self.not_yet = 0  # how often it has nothing to give at first
        self.events: list[tuple[str, dict[str, object]]] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def app(self) -> ClientApp:
        """The node's ClientApp."""
        app = ClientApp()

        @app.train("update")
        def update(message: Message, context: Context) -> Message:
            return Message(self._answer(message), reply_to=message)

        @app.evaluate("report")
        def report(message: Message, context: Context) -> Message:
            return Message(RecordDict(), reply_to=message)

        return app

    def start(self, url: str | None = None) -> "Wearer":
        """Go online; ``url`` is another address of the same coordinator."""
        if url:
            self.transport.close()
            self.transport = Transport(url)
            self.client = CoordinatorClient(self.transport, self.clock, node=self.name, key=self.key)
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Go offline without a word."""
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _run(self) -> None:
        link = Link(
            FleetApi(FlowerPost(self.transport, self.flower_key, self.clock)),
            self.app(),
            public_key=pem(self.flower_key.public_key()),
            clock=self.clock,
            chance=random.random,
            standing=self.client.standing,
            node_id=self.welcome.flower_id,
            record=self._record,
        )
        while not self._stop.is_set():
            wait = link.step(time.monotonic()) - time.monotonic()
            self._stop.wait(min(max(wait, 0.0), 0.3))

    def _record(self, event: str, **fields: object) -> None:
        self.events.append((event, fields))

    def _answer(self, message: Message) -> RecordDict:
        record = message.content.config_records["instruction"]
        sealed = Sealed(bytes(record["body"]), bytes(record["signature"]))  # type: ignore[arg-type]
        wish = UpdateInstruction.verified(sealed, self.welcome.instruction_key, now=clock())
        self.asked.append(wish.round)
        if len(self.asked) <= self.not_yet:
            return RecordDict()
        payload = encode(delta_of(self.name, wish.round))
        key = update_key(self.name, wish.task, wish.round, wish.base_digest)
        digests = (key, CODEC, sha256(payload))
        update = Update(
            self.name, wish.task, wish.round, wish.base, wish.base_digest, *digests, 1, wish.round, "0" * 64
        )
        signed = update.sealed(self.key)
        return RecordDict(
            {
                "update": ConfigRecord({"body": signed.body, "signature": signed.signature}),
                "delta": ArrayRecord({"delta": Array("float32", (len(payload) // 4,), CODEC, payload)}),
            }
        )
