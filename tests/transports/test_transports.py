"""The same fleet behaves the same, whatever carries Flower's messages."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from itertools import cycle

from coordinator.round import Round
from coordinator.server_app import REPORT
from fleet.messages import UpdateInstruction, Watch
from fleet.signing import Sealed, sha256
from node.client_app import REFUSED
from tests.coordinator.conftest import key_of
from tests.transports.networks import Network, Node, events, now


def given(network: Network, round_: Round) -> set[str]:
    """Digests of the deltas that are in the round's aggregate, or would be."""
    return {entry.payload for entry in network.coordinator.registry.rounds.entries(round_)}


def played(network: Network, *nodes: Node) -> Round:
    """The newest round, to which these nodes gave; played now if there was none yet."""
    rounds = network.coordinator.registry.rounds.all()
    return rounds[-1] if rounds else network.play(*nodes)


def learned(node: Node, round_: Round) -> str:
    """Digest of the delta that a node gave to a round."""
    return sha256(node.sent(round_.number)[2])


def instruction(network: Network, round_: int) -> UpdateInstruction:
    """What the coordinator would ask in a round, from the newest base."""
    base = network.coordinator.bases.newest()
    return UpdateInstruction("toy", now() + timedelta(minutes=5), round_, base.number, base.payload)


def signed(network: Network, wish: UpdateInstruction) -> Sealed:
    """The wish under the coordinator's own key."""
    return wish.sealed(network.coordinator._key)


def test_an_instruction_reaches_the_nodes_and_their_updates_the_registry_byte_for_byte(
    network: Network, anna: Node, ben: Node
) -> None:
    round_ = network.play(anna, ben)
    assert given(network, round_) == {learned(anna, round_), learned(ben, round_)}
    assert len(given(network, round_)) == 2
    assert network.coordinator.registry.rounds.refusals() == []


def test_a_node_that_has_nothing_yet_holds_nobody_up_and_is_asked_again(network: Network, anna: Node) -> None:
    late = network.join("late", examples=0)
    answered: list[set[str]] = []

    def meanwhile() -> None:
        now_answered = network.coordinator.registry.rounds.answered(len(network.coordinator.registry.rounds.all()))
        if "anna" in now_answered and "late" not in now_answered and not answered:
            answered.append(now_answered)
            with late.agent() as agent:
                agent.buffer.keep(network.toy.points(20, seed=9))

    round_ = network.play(anna, late, meanwhile=meanwhile)
    assert answered
    assert learned(late, round_) in given(network, round_)
    network.dismiss(late)


def test_I1_a_second_ask_is_answered_by_the_same_bytes_and_counted_once(
    network: Network, anna: Node, ben: Node
) -> None:
    round_ = played(network, anna, ben)
    with anna.agent() as agent:  # another session waits: it is for another round
        mu2 = agent.ledger.charge("train/0", noise_multiplier=agent.noise_multiplier, releases=1, purpose="session")
        base = network.coordinator.bases[round_.base]
        agent.outbox.put(0 * network.toy.weights(), mu2, base=base.number, base_digest=base.payload)
    counted, charged = network.coordinator.registry.rounds.counted(), anna.charges()
    [reply] = network.ask((anna, signed(network, replace(instruction(network, round_.number), base=round_.base))))
    record, delta = reply.content.config_records["update"], reply.content.array_records["delta"]["delta"]
    assert (record["body"], record["signature"], delta.data) == anna.sent(round_.number)
    again = Sealed(bytes(record["body"]), bytes(record["signature"]))  # type: ignore[arg-type]
    network.coordinator.receive_update(round_, "anna", again, delta.stype, delta.data)
    assert network.coordinator.registry.rounds.counted() == counted
    assert network.coordinator.registry.rounds.refusals() == []
    assert anna.charges() == charged


def refusals(*nodes: Node) -> int:
    """How often nodes recorded that they refused an instruction."""
    return sum(len(node.events("instruction-refused")) for node in nodes)


Forge = Callable[[Network, UpdateInstruction], Sealed]
FORGED: dict[str, Forge] = {
    "unsigned": lambda network, wish: Sealed(signed(network, wish).body, b""),
    "signed by another node": lambda network, wish: wish.sealed(key_of("mallory")),
    "altered": lambda network, wish: Sealed(replace(wish, round=wish.round + 1).sealed(key_of("x")).body, b"x" * 64),
    "expired": lambda network, wish: signed(network, replace(wish, expires=now() - timedelta(seconds=1))),
    "for another task": lambda network, wish: signed(network, replace(wish, task="other")),
    "of a round long past": lambda network, wish: signed(network, replace(wish, round=0)),
}


def test_I6_instructions_that_are_not_the_coordinators_for_now_are_refused_and_change_nothing(
    network: Network, anna: Node, ben: Node
) -> None:
    played(network, anna, ben)
    wish = instruction(network, len(network.coordinator.registry.rounds.all()) + 1)
    before, refused = [anna.dump(), ben.dump()], refusals(anna, ben)
    replies = network.ask(*zip(cycle((anna, ben)), (forge(network, wish) for forge in FORGED.values()), strict=False))
    codes = {how: reply.error.code if reply.has_error() else None for how, reply in zip(FORGED, replies, strict=True)}
    assert codes == dict.fromkeys(FORGED, REFUSED)
    assert [anna.dump(), ben.dump()] == before
    assert refusals(anna, ben) == refused + len(FORGED)


def test_a_node_that_is_offline_holds_nobody_up_and_catches_up(network: Network, anna: Node, ben: Node) -> None:
    away = network.join("away")
    network.until_online(away)
    network.disconnect(away)
    missed = network.play(anna, ben)
    assert len(given(network, missed)) == 2
    network.connect(away)
    round_ = network.play(anna, ben, away)
    assert round_.base == missed.base + 1
    assert learned(away, round_) in given(network, round_)
    network.dismiss(away)


def test_I12_a_client_app_that_raises_is_an_error_in_flower_and_the_round_goes_on(
    network: Network, anna: Node, ben: Node
) -> None:
    ill = network.join("ill")
    network.break_app(ill)

    def failures() -> list[str]:
        return [failed["code"] for failed in events(network.folder, "no-update") if failed["node"] == "ill"]

    round_ = network.play(anna, ben, over=lambda: bool(failures()))
    assert failures() == ["failed"]
    assert given(network, round_) == {learned(anna, round_), learned(ben, round_)}
    network.dismiss(ill)


def test_I8_a_node_that_is_revoked_is_in_no_round_from_then_on(network: Network, anna: Node, ben: Node) -> None:
    """Whatever Flower's own list of nodes says of it: a stock SuperLink goes on listening to it."""
    gone = network.join("gone")
    network.enrol("absent")  # so that the round stays open when the others have answered
    roster, rounds = network.coordinator.registry.roster, network.coordinator.registry.rounds

    def revoke() -> None:
        if "gone" in roster.active() and "gone" in rounds.answered(len(rounds.all())):
            network.access.revoke("gone")

    open_ = network.play(anna, ben, gone, meanwhile=revoke, over=lambda: "gone" not in roster.active())
    assert rounds.answered(open_.number) == {"anna", "ben", "gone"}
    assert given(network, open_) == {learned(anna, open_), learned(ben, open_)}
    network.access.revoke("absent")
    later = network.play(anna, ben)
    assert given(network, later) == {learned(anna, later), learned(ben, later)}
    assert gone.rounds() == [open_.number]
    network.dismiss(gone)


def test_a_report_on_a_release_in_shadow_is_counted_once(network: Network, anna: Node, ben: Node) -> None:
    played(network, anna, ben)
    network.coordinator.delivery.offer(network.toy.weights(scale=1.5))
    with anna.agent() as agent:
        agent.step()
        windows = network.toy.points(8, seed=3)
        for x, y in zip(windows.x, windows.y, strict=True):
            seq, _ = agent.answer(x)
            assert seq is not None
            agent.label(seq, int(y))
        agent.step()
    asked = network.coordinator.delivery.question()
    assert asked is not None
    network.ask_reports()
    counts = network.coordinator.registry.releases.counts(asked.release, Watch.SHADOW)
    assert counts.keys() == {"anna"}
    [reply] = network.ask((anna, network.coordinator.delivery.sealed(asked)), kind=REPORT)
    record = reply.content.config_records["report"]
    again = Sealed(bytes(record["body"]), bytes(record["signature"]))  # type: ignore[arg-type]
    network.coordinator.delivery.receive(asked, "anna", again)
    assert network.coordinator.registry.releases.counts(asked.release, Watch.SHADOW) == counts
