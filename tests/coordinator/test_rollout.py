"""A release reaches the fleet in waves, as far as the evidence carries it."""

import json
import math
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.publisher import Publisher, rollout_of
from coordinator.rollout import Phase, RolloutState, judge
from fleet.errors import TaskError, UsageError
from fleet.evidence import Pooled
from fleet.messages import Watch
from fleet.quantization import Template
from fleet.release import ROLLOUT_PATH, Release, Rollout, release_path, wave_hash, wave_threshold
from fleet.settings import ReleaseSettings
from tests.coordinator.conftest import NOW, SETTINGS, Fleet

RULES = ReleaseSettings(waves=(0.05, 0.25, 1.0), patience=timedelta(days=2), margin=0.05, wave_quorum=0.75)
QUOTA = 10
SOON, LATE, BACK = NOW + timedelta(hours=1), NOW + timedelta(days=2), NOW - timedelta(days=30)


def state(phase: Phase, wave: int = 0) -> RolloutState:
    return RolloutState(3, "salt", phase, wave, NOW)


def evidence(reports: int, won: int = 0, lost: int = 0) -> Pooled:
    """Each of ``reports`` nodes says the same."""
    return Pooled.of([(won, lost)] * reports, quota=QUOTA, noise_std=0.0)


SAME, BETTER, WORSE = (0, 0), (3, 0), (0, 6)


@pytest.mark.parametrize(
    ("before", "reports", "counts", "now", "after"),
    [
        pytest.param((Phase.SHADOW, 0), 0, SAME, SOON, (Phase.SHADOW, 0), id="shadow: nobody reported"),
        pytest.param((Phase.SHADOW, 0), 15, BETTER, SOON, (Phase.SHADOW, 0), id="shadow: waits for the last report"),
        pytest.param((Phase.SHADOW, 0), 15, WORSE, SOON, (Phase.SHADOW, 0), id="shadow: looks once, not early"),
        pytest.param((Phase.SHADOW, 0), 16, BETTER, SOON, (Phase.WAVE, 1), id="shadow: all say better"),
        pytest.param((Phase.SHADOW, 0), 16, SAME, SOON, (Phase.WAVE, 1), id="shadow: all say the same"),
        pytest.param((Phase.SHADOW, 0), 16, WORSE, SOON, (Phase.KEPT_OLD, 0), id="shadow: all say worse"),
        pytest.param((Phase.SHADOW, 0), 15, BETTER, LATE, (Phase.WAVE, 1), id="shadow: patience over, enough"),
        pytest.param((Phase.SHADOW, 0), 1, SAME, LATE, (Phase.KEPT_OLD, 0), id="shadow: patience over, too little"),
        pytest.param((Phase.SHADOW, 0), 1, SAME, BACK, (Phase.KEPT_OLD, 0), id="shadow: begun by a clock far ahead"),
        pytest.param((Phase.SHADOW, 0), 0, SAME, LATE, (Phase.KEPT_OLD, 0), id="shadow: patience over, silence"),
        pytest.param((Phase.WAVE, 1), 11, BETTER, SOON, (Phase.WAVE, 1), id="wave: below its quorum"),
        pytest.param((Phase.WAVE, 1), 12, BETTER, SOON, (Phase.WAVE, 2), id="wave: a quorum says better"),
        pytest.param((Phase.WAVE, 2), 12, SAME, SOON, (Phase.WAVE, 3), id="wave: a quorum says the same"),
        pytest.param((Phase.WAVE, 3), 12, SAME, SOON, (Phase.DONE, 3), id="last wave: a quorum says the same"),
        pytest.param((Phase.WAVE, 1), 12, WORSE, SOON, (Phase.HALTED, 1), id="wave: a quorum says worse"),
        pytest.param((Phase.WAVE, 3), 16, WORSE, SOON, (Phase.HALTED, 3), id="last wave: all say worse"),
        pytest.param((Phase.WAVE, 1), 11, WORSE, SOON, (Phase.WAVE, 1), id="wave: worse, but below its quorum"),
        pytest.param((Phase.WAVE, 1), 8, SAME, LATE, (Phase.WAVE, 2), id="wave: patience over, half reported"),
        pytest.param((Phase.WAVE, 1), 7, SAME, LATE, (Phase.HALTED, 1), id="wave: patience over, most are silent"),
        pytest.param((Phase.WAVE, 1), 4, WORSE, LATE, (Phase.HALTED, 1), id="wave: patience over, some say worse"),
        pytest.param((Phase.WAVE, 1), 0, SAME, LATE, (Phase.HALTED, 1), id="wave: patience over, silence halts"),
        pytest.param((Phase.DONE, 3), 16, WORSE, LATE, (Phase.DONE, 3), id="done stays done"),
        pytest.param((Phase.KEPT_OLD, 0), 16, BETTER, LATE, (Phase.KEPT_OLD, 0), id="kept-old stays"),
        pytest.param((Phase.HALTED, 1), 16, BETTER, LATE, (Phase.HALTED, 1), id="halted stays halted"),
    ],
)
def test_what_the_evidence_calls_for(
    before: tuple[Phase, int], reports: int, counts: tuple[int, int], now: Any, after: tuple[Phase, int]
) -> None:
    old = state(*before)
    judged = judge(old, evidence(reports, *counts), asked=16, settings=RULES, now=now)
    assert (judged.phase, judged.wave) == after
    assert (judged.release, judged.salt) == (3, "salt")
    assert judged.since == (NOW if after == before else now)


@pytest.mark.parametrize(
    ("quorum", "asked", "reports", "now", "after"),
    [
        pytest.param(0.4, 16, 6, SOON, Phase.WAVE, id="below a small quorum"),
        pytest.param(0.4, 16, 7, SOON, Phase.DONE, id="a quorum of fewer than half"),
        pytest.param(0.4, 16, 7, LATE, Phase.DONE, id="the same, looked at late"),
        pytest.param(0.4, 16, 6, LATE, Phase.HALTED, id="below it when patience is over"),
        pytest.param(0.55, 20, 11, SOON, Phase.DONE, id="0.55 of 20 is 11"),
        pytest.param(0.55, 20, 10, SOON, Phase.WAVE, id="10 of 20 are fewer"),
        pytest.param(1e-10, 16, 0, SOON, Phase.WAVE, id="no quorum is nobody"),
        pytest.param(0.75, 0, 0, LATE, Phase.WAVE, id="a wave that exposes nobody"),
    ],
)
def test_a_wave_is_silent_only_below_its_quorum_and_judged_only_where_somebody_is_exposed(
    quorum: float, asked: int, reports: int, now: Any, after: Phase
) -> None:
    rules = replace(RULES, wave_quorum=quorum)
    judged = judge(state(Phase.WAVE, 3), evidence(reports, *SAME), asked=asked, settings=rules, now=now)
    assert judged.phase is after


@pytest.mark.parametrize(
    ("fraction", "nodes", "members"),
    [(0.05, 1, 1), (0.05, 16, 1), (0.05, 20, 1), (0.05, 21, 2), (0.25, 16, 4), (0.5, 3, 2), (1.0, 16, 16), (1.0, 0, 0)],
)
def test_a_wave_is_its_share_of_the_roster_rounded_up(fraction: float, nodes: int, members: int) -> None:
    roster = [f"node-{index}" for index in range(nodes)]
    policy = rollout_of(replace(state(Phase.WAVE, 1), threshold=wave_threshold("salt", roster, fraction)))
    assert sum(policy.includes(name) for name in roster) == members


@pytest.mark.parametrize("phase", [Phase.SHADOW, Phase.KEPT_OLD, Phase.HALTED])
def test_outside_of_waves_nobody_serves_the_release(phase: Phase) -> None:
    roster = [f"node-{index}" for index in range(16)]
    assert not any(rollout_of(state(phase)).includes(name) for name in roster)


def test_a_release_that_is_done_is_for_nodes_that_enrol_later_too() -> None:
    assert rollout_of(state(Phase.DONE)).includes("a node of tomorrow")


# through a coordinator: sixteen nodes, a small real model


@pytest.fixture
def sixteen(tmp_path: Path, template: Template) -> Fleet:
    """Sixteen nodes, after one round whose base is release 1, in shadow."""
    settings = SETTINGS.changed(release={"every_rounds": 1, "waves": (0.05, 0.25, 1.0), "probation_windows": 10})
    fleet = Fleet(tmp_path / "coordinator", template, settings, nodes=16)
    fleet.play_round()
    fleet.coordinator.delivery.offer_newest()
    return fleet


def newest(fleet: Fleet) -> tuple[Release, RolloutState]:
    found = fleet.coordinator.registry.releases.newest()
    assert found is not None
    return found


def policy(fleet: Fleet) -> dict[str, Any]:
    """The rollout as nodes read it."""
    fields: dict[str, Any] = json.loads(fleet.repository.target(ROLLOUT_PATH) or b"")
    return fields


def report(fleet: Fleet, won: int, lost: int, *, of: int | None = None) -> None:
    """All that are waited for report the same, or the first ``of`` of them; then the coordinator judges."""
    for name in sorted(fleet.coordinator.delivery.reporters())[:of]:
        fleet.report(name, won, lost)
    fleet.coordinator.delivery.judge()


def test_a_good_release_goes_from_shadow_through_three_waves_to_everybody(sixteen: Fleet) -> None:
    assert len(sixteen.coordinator.delivery.reporters()) == 16
    seen = []
    for _ in range(4):
        report(sixteen, won=1, lost=0)
        phase = newest(sixteen)[1].phase
        exposed = [
            name for name in sixteen.names if wave_hash(policy(sixteen)["salt"], name) <= policy(sixteen)["threshold"]
        ]
        seen.append((phase, len(exposed)))
    assert seen == [(Phase.WAVE, 1), (Phase.WAVE, 4), (Phase.WAVE, 16), (Phase.DONE, 16)]
    assert sixteen.coordinator.registry.releases.serving().number == 1
    assert sixteen.coordinator.delivery.question() is None


def test_every_step_of_a_rollout_is_recorded_with_the_stage_that_was_judged(
    sixteen: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, str]] = []
    delivery = sixteen.coordinator.delivery
    monkeypatch.setattr(delivery, "_record", lambda _, **fields: steps.append((fields["judged"], fields["phase"])))
    for _ in range(4):
        report(sixteen, won=1, lost=0)
    assert steps == [("shadow", "wave"), ("wave 1", "wave"), ("wave 2", "wave"), ("wave 3", "done")]


def exposed(fleet: Fleet) -> set[str]:
    """Who may serve the newest release, by the policy that is on the shelf."""
    rollout = Rollout.from_bytes(fleet.repository.target(ROLLOUT_PATH) or b"")
    return {name for name in fleet.coordinator.registry.roster.active() if rollout.includes(name)}


def test_each_wave_holds_the_one_before_whoever_enrols_meanwhile(sixteen: Fleet) -> None:
    waves = []
    for wave in range(3):
        report(sixteen, won=1, lost=0)
        waves.append(exposed(sixteen))
        for number in range(40):
            sixteen.enrol(f"late-{wave}-{number}")
    assert waves[0] < waves[1] < waves[2]


def test_a_wave_asks_whom_it_exposed_whoever_comes_or_goes(sixteen: Fleet) -> None:
    report(sixteen, won=1, lost=0)
    canary = exposed(sixteen)
    report(sixteen, won=1, lost=0)
    gone = sorted(exposed(sixteen) - canary)[0]
    left = exposed(sixteen) - canary - {gone}
    sixteen.coordinator.revoke(gone)
    assert set(sixteen.coordinator.delivery.reporters()) == left == exposed(sixteen) - canary
    for number in range(40):
        sixteen.enrol(f"late-{number}")
    assert set(sixteen.coordinator.delivery.reporters()) == exposed(sixteen) - canary > left


def test_a_wave_that_was_revoked_whole_is_drawn_anew(sixteen: Fleet) -> None:
    report(sixteen, won=1, lost=0)
    [canary] = exposed(sixteen)
    sixteen.coordinator.revoke(canary)
    sixteen.coordinator.delivery.judge()
    [another] = exposed(sixteen)
    assert newest(sixteen)[1].phase is Phase.WAVE
    assert list(sixteen.coordinator.delivery.reporters()) == [another]


def test_a_paused_wave_that_was_revoked_whole_is_drawn_anew_when_it_goes_on(sixteen: Fleet) -> None:
    delivery = sixteen.coordinator.delivery
    report(sixteen, won=1, lost=0)
    [canary] = exposed(sixteen)
    delivery.pause(paused=True)
    sixteen.coordinator.revoke(canary)
    delivery.judge()
    assert exposed(sixteen) == set()
    delivery.pause(paused=False)
    delivery.judge()
    assert len(exposed(sixteen)) == 1


def test_a_rollout_whose_whole_fleet_was_revoked_opens_to_nobody_new(sixteen: Fleet) -> None:
    report(sixteen, won=1, lost=0)
    for name in sixteen.names:
        sixteen.coordinator.revoke(name)
    sixteen.pass_time(timedelta(days=9))
    sixteen.coordinator.delivery.judge()
    assert (newest(sixteen)[1].phase, newest(sixteen)[1].wave) == (Phase.WAVE, 1)
    assert sixteen.coordinator.registry.releases.serving().number == 0


def test_a_wave_of_five_percent_of_sixteen_asks_one_node(sixteen: Fleet) -> None:
    report(sixteen, won=1, lost=0)
    [canary] = sixteen.coordinator.delivery.reporters()
    assert policy(sixteen)["threshold"] == min(wave_hash(policy(sixteen)["salt"], name) for name in sixteen.names)
    assert wave_hash(policy(sixteen)["salt"], canary) == policy(sixteen)["threshold"]
    instruction = sixteen.coordinator.delivery.question()
    assert instruction is not None
    assert (instruction.release, instruction.watch, instruction.quota) == (1, Watch.PROBATION, 10)


def test_a_release_that_looks_worse_in_shadow_is_never_served(sixteen: Fleet) -> None:
    report(sixteen, won=0, lost=6)
    release, where = newest(sixteen)
    assert (release.number, where.phase) == (1, Phase.KEPT_OLD)
    assert policy(sixteen) == {"halted": True, "release": 1, "salt": where.salt, "serving": 0, "threshold": ""}
    assert sixteen.coordinator.registry.releases.serving().number == 0


def test_a_fleet_that_does_not_report_keeps_the_old_release_when_patience_is_over(sixteen: Fleet) -> None:
    sixteen.coordinator.delivery.judge()
    assert newest(sixteen)[1].phase is Phase.SHADOW
    sixteen.pass_time(SETTINGS.release.patience)
    sixteen.coordinator.delivery.judge()
    assert newest(sixteen)[1].phase is Phase.KEPT_OLD


def halt(fleet: Fleet) -> None:
    report(fleet, won=1, lost=0)
    report(fleet, won=0, lost=9)


def test_I5_a_halted_release_is_withdrawn_by_a_higher_number_with_the_old_weights(sixteen: Fleet) -> None:
    halt(sixteen)
    (zero, _), (one, halted), (two, state_of_two) = sixteen.coordinator.registry.releases.all()
    assert halted.phase is Phase.HALTED
    assert (two.number, two.withdraws, state_of_two.phase) == (2, 1, Phase.DONE)
    assert replace(two, number=0, withdraws=0) == zero
    assert one.payload != zero.payload
    assert sixteen.repository.target("releases/00000002/weights.bin") == sixteen.repository.target(
        "releases/00000000/weights.bin"
    )
    assert (policy(sixteen)["release"], policy(sixteen)["halted"]) == (2, False)


def test_I5_a_withdrawal_goes_back_to_what_was_served_last_and_not_to_the_beginning(sixteen: Fleet) -> None:
    for _ in range(4):
        report(sixteen, won=1, lost=0)
    sixteen.play_round()
    sixteen.coordinator.delivery.offer_newest()
    halt(sixteen)
    numbers = {release.number: release for release, _ in sixteen.coordinator.registry.releases.all()}
    assert (numbers[3].withdraws, numbers[3].base, numbers[3].payload) == (2, 1, numbers[1].payload)


def test_I5_a_coordinator_killed_between_the_halt_and_the_withdrawal_withdraws(
    sixteen: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(number: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sixteen.coordinator.delivery, "_withdraw", killed)
    with pytest.raises(KeyboardInterrupt):
        halt(sixteen)
    assert newest(sixteen)[1].phase is Phase.HALTED
    sixteen.close()
    for _ in range(2):
        sixteen.open()
        release, where = newest(sixteen)
        assert (release.number, release.withdraws, where.phase) == (2, 1, Phase.DONE)
        assert policy(sixteen)["release"] == 2
        sixteen.close()


def test_no_release_is_offered_while_one_is_rolled_out_and_the_next_one_follows(sixteen: Fleet) -> None:
    sixteen.play_round()
    sixteen.coordinator.delivery.offer_newest()
    assert newest(sixteen)[0].number == 1
    report(sixteen, won=0, lost=6)
    sixteen.coordinator.delivery.offer_newest()
    assert (newest(sixteen)[0].number, newest(sixteen)[0].base) == (2, 2)


def test_a_release_is_due_after_its_rounds(tmp_path: Path, template: Template) -> None:
    fleet = Fleet(tmp_path / "coordinator", template, SETTINGS.changed(release={"every_rounds": 2}))
    offered = []
    for _ in range(4):
        fleet.play_round()
        fleet.coordinator.delivery.offer_newest()
        offered.append(newest(fleet)[0].number)
        while fleet.coordinator.registry.releases.running():
            report(fleet, won=1, lost=0)
    assert offered == [0, 1, 1, 2]


def test_I5_a_number_stands_for_one_release_through_restarts(sixteen: Fleet) -> None:
    before = newest(sixteen)
    versions = sixteen.repository.target("releases/00000001/manifest.json")
    for _ in range(2):
        sixteen.close()
        sixteen.open()
    assert newest(sixteen) == before
    assert sixteen.repository.target("releases/00000001/manifest.json") == versions == before[0].to_bytes()


def test_a_coordinator_starts_with_the_release_it_published_under_another_numpy(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = release_path(0, "golden.bin")
    before = fleet.repository.target(path)
    fleet.close()
    with monkeypatch.context() as upgraded:
        upgraded.setattr("coordinator.publisher.golden_inputs", lambda *_: np.zeros((16, 6), np.float32))
        fleet.open()
    assert fleet.repository.target(path) == before
    next((fleet.folder / "repository/targets/releases/00000000").glob("*.golden.bin")).unlink()
    fleet.close()
    fleet.open()
    assert fleet.repository.target(path) == before


def test_I8_the_report_of_a_node_revoked_since_is_not_in_the_evidence(sixteen: Fleet) -> None:
    sixteen.report("node-3", won=0, lost=10)
    sixteen.coordinator.registry.roster.revoke("node-3")
    assert sixteen.coordinator.registry.releases.counts(1, Watch.SHADOW) == {}


def test_the_report_of_a_node_outside_of_the_wave_is_not_in_its_evidence(sixteen: Fleet) -> None:
    report(sixteen, won=1, lost=0)
    [canary] = sixteen.coordinator.delivery.reporters()
    sixteen.report(next(name for name in sixteen.names if name != canary), won=0, lost=9)
    report(sixteen, won=1, lost=0)
    assert (newest(sixteen)[1].phase, newest(sixteen)[1].wave) == (Phase.WAVE, 2)


def test_a_wave_of_a_fleet_that_shrank_still_holds_everybody_whom_the_last_one_exposed(
    tmp_path: Path, template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS.changed(release={"every_rounds": 1, "waves": (0.5, 0.6, 1.0), "probation_windows": 10})
    fleet = Fleet(tmp_path / "coordinator", template, settings, nodes=12)
    fleet.play_round()
    fleet.coordinator.delivery.offer_newest()
    report(fleet, won=1, lost=0)
    exposed = set(fleet.coordinator.delivery.reporters())
    for name in set(fleet.names) - exposed:
        fleet.coordinator.revoke(name)
    published: list[Rollout] = []
    monkeypatch.setattr(Publisher, "rollout", lambda publisher, rollout: published.append(rollout))
    report(fleet, won=1, lost=0)
    assert len(exposed) == 6
    assert [sum(rollout.includes(name) for name in exposed) for rollout in published] == [6, 6, 6]
    assert newest(fleet)[1].phase is Phase.DONE


def test_a_report_that_was_lost_is_admitted_when_it_is_asked_again_after_a_later_update(sixteen: Fleet) -> None:
    """The node sends the same stored bytes for ever; meanwhile an update with a higher ledger number arrived."""
    round_ = sixteen.opened()
    sixteen.answer(round_)  # ledger 20
    sixteen.report("node-0", won=1, lost=0, ledger_seq=15)
    assert "node-0" in sixteen.coordinator.registry.releases.counts(1, Watch.SHADOW)


@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_no_evidence_opens_no_wave(noise: float) -> None:
    nothing = Pooled.of([], quota=QUOTA, noise_std=noise)
    assert math.isinf(nothing.error)
    assert judge(state(Phase.SHADOW), nothing, asked=0, settings=RULES, now=SOON).phase is Phase.KEPT_OLD


def test_weights_that_an_operator_brings_are_rolled_out_like_any_and_training_goes_on_beside_them(fleet: Fleet) -> None:
    trained = fleet.play_round()
    brought = fleet.coordinator.bases.master(trained) + 1
    fleet.coordinator.delivery.offer(brought)
    release, state = newest(fleet)
    assert (release.number, release.base, state.phase) == (1, 2, Phase.SHADOW)
    assert (fleet.coordinator.bases.master(fleet.bases[2]) == brought).all()
    assert [base.number for base in fleet.bases if base.payload == trained.payload] == [1, 3]
    fleet.close()
    fleet.open()
    assert newest(fleet) == (release, state)
    round_ = fleet.opened()
    assert round_.base == 3
    fleet.answer(round_)
    fleet.settle(round_)
    assert fleet.bases[-1].number == 4
    assert fleet.coordinator.registry.rounds.closed() == 2


def test_weights_that_cannot_be_released_take_no_number(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = fleet.coordinator.bases.master(fleet.bases[0])

    def refuse(*_: object) -> None:
        raise TaskError("golden inputs are too close to a tie")

    monkeypatch.setattr("coordinator.publisher.golden_inputs", refuse)
    with pytest.raises(TaskError):
        fleet.coordinator.delivery.offer(weights + 1)
    assert (newest(fleet)[0].number, len(fleet.bases)) == (0, 1)


def test_an_operator_offers_one_release_at_a_time(fleet: Fleet) -> None:
    weights = fleet.coordinator.bases.master(fleet.bases[0])
    fleet.coordinator.delivery.offer(weights + 1)
    with pytest.raises(UsageError, match="release 1 is being rolled out"):
        fleet.coordinator.delivery.offer(weights + 2)
    assert (newest(fleet)[0].number, len(fleet.bases)) == (1, 3)
