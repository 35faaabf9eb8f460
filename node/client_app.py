"""Flower's door to a node: translates messages, and hands over to the agent."""

from typing import Protocol

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fleet.errors import FleetError
from fleet.messages import CODEC
from fleet.signing import Sealed
from node.outbox import Parcel

REFUSED = 401


class Participant(Protocol):
    """Who answers the coordinator's asks for a node: its agent."""

    def update(self, sealed: Sealed) -> Parcel | None:
        """The update for the instruction's round; None while there is none."""

    def report(self, sealed: Sealed) -> Sealed | None:
        """What live windows say of a release; None while there are too few."""


def client_app(agent: Participant) -> ClientApp:
    """The ClientApp of one node."""
    app = ClientApp()

    @app.train("update")
    def update(message: Message, context: Context) -> Message:
        try:
            parcel = agent.update(_instruction(message))
        except FleetError as error:
            return Message(Error(REFUSED, str(error)), reply_to=message)
        return Message(_update_records(parcel), reply_to=message)

    @app.evaluate("report")
    def report(message: Message, context: Context) -> Message:
        try:
            sealed = agent.report(_instruction(message))
        except FleetError as error:
            return Message(Error(REFUSED, str(error)), reply_to=message)
        return Message(RecordDict({"report": _record(sealed)} if sealed else {}), reply_to=message)

    return app


def _instruction(message: Message) -> Sealed:
    return Sealed.of(message.content.config_records.get("instruction", {}))


def _record(sealed: Sealed) -> ConfigRecord:
    return ConfigRecord({"body": sealed.body, "signature": sealed.signature})


def _update_records(parcel: Parcel | None) -> RecordDict:
    """One flat array and one signed record; empty when there is nothing yet."""
    if parcel is None:
        return RecordDict()
    delta = Array("float32", (len(parcel.payload) // 4,), CODEC, parcel.payload)
    return RecordDict({"update": _record(parcel.sealed), "delta": ArrayRecord({"delta": delta})})
