"""What an operator may change: rounds before their time, a rollout held or taken back."""

from datetime import timedelta
from pathlib import Path

import pytest

from coordinator import overview
from coordinator.rollout import Phase
from coordinator.round import Round, RoundState, is_due
from fleet.errors import RefusedError
from fleet.quantization import Template
from fleet.release import ROLLOUT_PATH, Rollout
from tests.coordinator.conftest import NOW, SETTINGS, Fleet

OFTEN = SETTINGS.changed(release={"every_rounds": 1, "waves": (0.3, 1.0), "patience": timedelta(hours=1)})


@pytest.fixture
def offered(tmp_path: Path, template: Template) -> Fleet:
    """Five nodes; release 1 is in shadow."""
    fleet = Fleet(tmp_path / "coordinator", template, OFTEN)
    fleet.play_round()
    fleet.coordinator.delivery.offer_newest()
    return fleet


def phases(fleet: Fleet) -> list[Phase]:
    return [state.phase for _, state in fleet.coordinator.registry.releases.all()]


def published(fleet: Fleet) -> Rollout:
    data = fleet.repository.target(ROLLOUT_PATH)
    assert data is not None
    return Rollout.from_bytes(data)


def report_all(fleet: Fleet, *, won: int) -> None:
    for name in fleet.coordinator.delivery.reporters():
        fleet.report(name, won, 0)


def test_a_paused_rollout_stands_still_whatever_is_reported_and_goes_on_when_resumed(offered: Fleet) -> None:
    offered.coordinator.delivery.pause(paused=True)
    report_all(offered, won=5)
    offered.pass_time(timedelta(days=9))
    offered.coordinator.delivery.judge()
    assert phases(offered)[1] is Phase.SHADOW
    offered.close()
    offered.open()
    offered.coordinator.delivery.judge()
    assert phases(offered)[1] is Phase.SHADOW
    offered.coordinator.delivery.pause(paused=False)
    offered.coordinator.delivery.judge()
    assert phases(offered)[1] is Phase.WAVE


def test_a_pause_does_not_use_up_the_patience(offered: Fleet) -> None:
    offered.coordinator.delivery.pause(paused=True)
    offered.pass_time(timedelta(days=9))
    offered.coordinator.delivery.pause(paused=False)
    offered.coordinator.delivery.judge()
    assert phases(offered)[1] is Phase.SHADOW


def test_a_release_in_its_first_wave_is_withdrawn_for_what_was_served_before(offered: Fleet) -> None:
    report_all(offered, won=5)
    offered.coordinator.delivery.judge()
    assert phases(offered)[1] is Phase.WAVE
    withdrawal = offered.coordinator.delivery.withdraw_newest()
    assert (withdrawal.number, withdrawal.base, withdrawal.withdraws) == (2, 0, 1)
    assert phases(offered) == [Phase.DONE, Phase.HALTED, Phase.DONE]
    assert (published(offered).release, published(offered).serving) == (2, 2)


def test_a_release_that_all_serve_is_withdrawn_too(offered: Fleet) -> None:
    for _ in range(4):
        report_all(offered, won=5 if phases(offered)[1] is Phase.SHADOW else 1)
        offered.coordinator.delivery.judge()
    assert phases(offered)[1] is Phase.DONE
    withdrawal = offered.coordinator.delivery.withdraw_newest()
    assert (withdrawal.base, withdrawal.withdraws) == (0, 1)
    assert published(offered).serving == 2


def roll_out(fleet: Fleet) -> None:
    while fleet.coordinator.registry.releases.running():
        report_all(fleet, won=1)
        fleet.coordinator.delivery.judge()


def test_each_withdrawal_goes_back_to_weights_that_were_not_withdrawn_and_is_refused_when_none_are_left(
    offered: Fleet,
) -> None:
    roll_out(offered)
    offered.play_round()
    offered.coordinator.delivery.offer_newest()
    roll_out(offered)
    delivery = offered.coordinator.delivery
    gone_back = [(release.withdraws, release.base) for release in (delivery.withdraw_newest() for _ in range(2))]
    assert gone_back == [(2, 1), (3, 0)]
    before = published(offered)
    with pytest.raises(RefusedError) as caught:
        delivery.withdraw_newest()
    assert caught.value.code == "nothing-before"
    assert published(offered) == before
    assert before.serving == 4


def test_weights_that_were_withdrawn_and_offered_again_are_gone_back_to_like_any(offered: Fleet) -> None:
    roll_out(offered)
    delivery = offered.coordinator.delivery
    again = offered.coordinator.bases.master(offered.bases[1])
    delivery.withdraw_newest()
    delivery.offer(again)
    roll_out(offered)
    delivery.offer(again + 1)
    roll_out(offered)
    withdrawal, release = delivery.withdraw_newest(), offered.coordinator.registry.releases.all()[3][0]
    assert (withdrawal.withdraws, withdrawal.payload) == (4, release.payload)


def test_a_withdrawal_that_a_crash_cut_short_is_finished_at_the_next_start(
    offered: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offered.coordinator.delivery, "_withdraw", lambda number: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(SystemExit):
        offered.coordinator.delivery.withdraw_newest()
    offered.close()
    offered.open()
    assert phases(offered) == [Phase.DONE, Phase.HALTED, Phase.DONE]


def test_what_nobody_serves_is_not_withdrawn_again(offered: Fleet) -> None:
    offered.pass_time(timedelta(hours=2))
    offered.coordinator.delivery.judge()
    assert phases(offered)[1] is Phase.KEPT_OLD
    with pytest.raises(RefusedError) as caught:
        offered.coordinator.delivery.withdraw_newest()
    assert caught.value.code == "not-served"


@pytest.mark.parametrize(
    ("state", "minutes", "played", "due"),
    [
        pytest.param(RoundState.CLOSED, 59, 1, False, id="too early"),
        pytest.param(RoundState.CLOSED, 60, 1, True, id="on time"),
        pytest.param(RoundState.CLOSED, -59, 1, False, id="a clock that went back a little"),
        pytest.param(RoundState.CLOSED, -30 * 24 * 60, 1, True, id="the last began by a clock far ahead"),
        pytest.param(RoundState.FAILED, 60, 1, True, id="after a failure"),
        pytest.param(RoundState.OPEN, 60, 1, False, id="one is open"),
        pytest.param(RoundState.CLOSED, 60, 3, False, id="the plan is spent"),
    ],
)
def test_the_timer_opens_a_round_when_the_last_began_long_ago(
    state: RoundState, minutes: int, played: int, due: bool
) -> None:
    rounds = [Round(number, 0, state, NOW, NOW) for number in range(1, played + 1)]
    assert is_due(rounds, plan=3, every=timedelta(hours=1), now=NOW + timedelta(minutes=minutes)) is due


def test_a_fleet_too_small_for_the_quorum_uses_up_no_round(tmp_path: Path, template: Template) -> None:
    fleet = Fleet(tmp_path / "coordinator", template, nodes=1)
    assert fleet.coordinator.open_round(asked=True) is None
    assert not fleet.coordinator.round_is_due()
    fleet.names.append("node-1")
    fleet.enrol("node-1")
    assert fleet.coordinator.round_is_due()


def test_a_node_asks_often_while_something_is_asked_and_seldom_otherwise(tmp_path: Path, template: Template) -> None:
    fleet = Fleet(tmp_path / "coordinator", template)
    registry = fleet.coordinator.registry
    round_ = fleet.opened()
    assert overview.poll_s(registry, SETTINGS, NOW) == overview.SOON_S
    fleet.answer(round_)
    fleet.settle(round_, late=False)
    assert overview.poll_s(registry, SETTINGS, NOW) == overview.LATER_S
    soon = NOW + timedelta(minutes=59)
    assert overview.poll_s(registry, SETTINGS, soon) == 60


def test_a_node_asks_now_and_then_while_nobody_knows_when_something_comes(tmp_path: Path, template: Template) -> None:
    """A metered link pays for every ask: before the first round, in a rollout, when a round waits for a quorum."""
    fleet = Fleet(tmp_path / "coordinator", template, OFTEN)
    registry = fleet.coordinator.registry
    assert overview.poll_s(registry, OFTEN, NOW) == 150
    fleet.play_round()
    fleet.coordinator.delivery.offer_newest()
    assert registry.releases.running()
    assert overview.poll_s(registry, OFTEN, fleet.now) == 150
    assert overview.poll_s(registry, OFTEN, NOW + timedelta(minutes=59)) == 60
    assert overview.poll_s(registry, OFTEN, NOW + timedelta(hours=2)) == 150


@pytest.mark.parametrize(
    ("section", "changes", "seconds"),
    [
        pytest.param("round", {"every": timedelta(seconds=45)}, 2, id="rounds follow fast"),
        pytest.param("round", {"deadline": timedelta(minutes=1)}, 15, id="a round is soon over"),
        pytest.param("release", {"patience": timedelta(minutes=5)}, 15, id="a rollout is soon over"),
        pytest.param("round", {"every": timedelta(days=7), "deadline": timedelta(days=1)}, 300, id="all is slow"),
    ],
)
def test_what_is_now_and_then_follows_from_the_schedule(
    tmp_path: Path, template: Template, section: str, changes: dict[str, timedelta], seconds: int
) -> None:
    settings = SETTINGS.changed(**{section: changes})
    fleet = Fleet(tmp_path / "coordinator", template, settings)
    assert overview.poll_s(fleet.coordinator.registry, settings, NOW) == seconds
