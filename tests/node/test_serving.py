"""A node's models, from the first release to commit, veto, rollback and withdrawal, and through crashes between."""

import errno
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet import durable
from fleet.errors import SignatureError, StoreError, TrustError
from fleet.messages import Watch
from fleet.release import Rollout
from node.admission import admit
from node.promotion import Stage, StageLog
from node.serving import Serving
from node.shadow import Shadow
from node.slots import Pointer, Slots
from node.store import open_store
from tests.power_cut import PowerCut, power_for_writes

EVERYBODY = "f" * 64
NOBODY = ""


class Node:
    """The serving half of a node over one folder, which may be opened again at any time."""

    def __init__(self, folder: Path, toy: Any) -> None:
        self.folder = folder
        self.toy = toy
        self.stores: list[sqlite3.Connection] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.open()

    def open(self) -> None:
        self.store = open_store(self.folder / "node.db")
        self.stores.append(self.store)
        self.stages, self.slots = StageLog(self.store), Slots(self.folder / "slots")
        self.shadow = Shadow(self.store, self.toy.signature)
        self.serving = Serving(
            "n1",
            self.toy.signature,
            stages=self.stages,
            slots=self.slots,
            shadow=self.shadow,
            admit=admit,
            record=lambda event, **fields: self.events.append((event, fields)),
        )

    def begin(self) -> None:
        """With release 1 in service."""
        self.toy.put(1)
        self.serving.provision(self.toy, 1)

    def offer(self, number: int, threshold: str = NOBODY, *, serving: int = 0, **what: Any) -> Rollout:
        self.toy.put(number, **what)
        return self.pull(Rollout(number, "salt", threshold, serving=serving))

    def pull(self, rollout: Rollout) -> Rollout:
        self.serving.consider(rollout, self.toy)
        self.serving.settle(rollout)
        return rollout

    def live(self, count: int, rollout: Rollout | None = None) -> None:
        """Labelled live readings, and what follows from them."""
        windows = self.toy.points(count)
        for x, y in zip(windows.x, windows.y, strict=True):
            assert self.serving.active is not None
            self.shadow.label(self.shadow.record(x, self.serving.active.answer(x)), int(y))
        self.serving.settle(rollout)

    def says(self) -> int:
        """The release that answers, asked for an answer."""
        assert self.serving.active is not None
        return self.serving.active.answer(np.array([0.5, 0], np.float32)).release

    def stage(self, number: int) -> Stage | None:
        return self.stages.stage(number)


@pytest.fixture
def node(tmp_path: Path, toy: Any) -> Any:
    node = Node(tmp_path, toy)
    node.begin()
    yield node
    for store in node.stores:
        store.close()


def test_a_new_node_serves_its_first_release_once_its_golden_outputs_match(node: Node) -> None:
    assert (node.says(), node.slots.pointer(), node.stage(1)) == (1, Pointer(1, None), Stage.COMMITTED)
    assert node.serving.active is not None
    assert [node.serving.active.answer(x).label for x in np.array([[0.5, 0], [-0.5, 0]], np.float32)] == [1, 0]


def test_a_first_release_that_computes_something_else_is_not_served(tmp_path: Path, toy: Any) -> None:
    node = Node(tmp_path, toy)
    toy.put(1, golden="0" * 64)
    with pytest.raises(TrustError, match="other golden outputs"):
        node.serving.provision(toy, 1)
    assert node.serving.active is None
    assert node.slots.pointer() is None
    node.store.close()


def test_a_candidate_is_heard_by_nobody_until_its_wave_opens(node: Node) -> None:
    rollout = node.offer(2)
    node.live(5, rollout)
    assert (node.says(), node.stage(2), node.slots.pointer()) == (1, Stage.SHADOW, Pointer(1, None))
    assert node.serving.rival is not None
    assert node.serving.rival.release == 2


def test_a_release_is_promoted_in_its_wave_and_committed_after_its_probation(node: Node) -> None:
    node.offer(2)
    wave = node.pull(Rollout(2, "salt", EVERYBODY))
    assert (node.says(), node.stage(2), node.slots.pointer()) == (2, Stage.PROBATION, Pointer(2, 1))
    assert node.serving.rival is not None
    assert node.serving.rival.release == 1
    node.live(1, wave)
    assert node.stage(2) is Stage.PROBATION
    node.live(1, wave)
    assert (node.says(), node.stage(2), node.slots.pointer()) == (2, Stage.COMMITTED, Pointer(2, 1))
    assert node.serving.rival is None


def test_the_first_release_of_all_is_a_way_back_too(tmp_path: Path, toy: Any) -> None:
    """Its number is 0."""
    node = Node(tmp_path, toy)
    toy.put(0)
    node.serving.provision(toy, 0)
    rollout = node.offer(1, EVERYBODY, right=False, quota=100)
    assert node.serving.rival is not None
    assert (node.says(), node.serving.rival.release, node.slots.pointer()) == (1, 0, Pointer(1, 0))
    node.live(30, rollout)
    assert (node.says(), node.stage(1)) == (0, Stage.ROLLED_BACK)
    node.store.close()


def test_a_broken_release_is_vetoed_in_shadow_and_never_answered(node: Node) -> None:
    rollout = node.offer(2, right=False)
    for _ in range(30):
        node.live(1, rollout)
    assert node.stage(2) is Stage.VETOED
    assert node.stages.history()[-1][2].startswith("veto: evidence of harm")
    rollout = Rollout(2, "salt", EVERYBODY)
    node.pull(rollout)
    assert (node.stage(2), node.says()) == (Stage.MUTED, 1)
    node.live(5, rollout)
    assert (node.stage(2), node.says()) == (Stage.REJECTED, 1)
    assert node.shadow.answered_with() == {1}
    assert not node.slots.is_whole(2)


def test_a_release_that_harms_on_probation_goes_back_at_once(node: Node) -> None:
    rollout = node.offer(2, EVERYBODY, right=False, quota=100)
    assert node.says() == 2
    for _ in range(30):
        node.live(1, rollout)
    assert (node.says(), node.stage(2), node.slots.pointer()) == (1, Stage.ROLLED_BACK, Pointer(1, None))


@pytest.mark.parametrize("right", [True, False], ids=["good", "refused"])
def test_I4_what_a_node_compares_and_how_long_does_not_depend_on_what_it_finds(node: Node, right: bool) -> None:
    """The same windows are evidence, of the same stage, whether the node refuses the release or takes it."""
    in_shadow = node.offer(2, right=right, quota=12)
    for _ in range(20):
        node.live(1, in_shadow)
    open_to_all = node.pull(Rollout(2, "salt", EVERYBODY))
    for _ in range(20):
        node.live(1, open_to_all)
    assert node.says() == (2 if right else 1)
    assert [pair.seq for pair in node.shadow.pairs(2, Watch.SHADOW)] == list(range(20))
    assert [pair.seq for pair in node.shadow.pairs(2, Watch.PROBATION)] == list(range(20, 32))


@pytest.mark.parametrize("harmed", [12, 6, 0])
def test_I4_a_node_that_goes_back_gives_as_much_evidence_as_one_that_stays(node: Node, harmed: int) -> None:
    """Its windows are compared to the end of its quota, and after it none is."""
    rollout = node.offer(2, EVERYBODY, right=harmed < 12, quota=12)
    for _ in range(20):
        node.live(1, rollout)
    assert len(node.shadow.pairs(2, Watch.PROBATION)) == 12


def test_a_release_that_another_process_of_the_node_is_storing_is_left_alone(node: Node) -> None:
    node.toy.put(2)
    node.slots.store(*node.toy.release(2))  # and not logged yet
    node.live(1)
    assert node.slots.is_whole(2)


def test_a_release_that_computes_something_else_here_is_rejected(node: Node) -> None:
    node.offer(2, EVERYBODY, golden="0" * 64)
    assert (node.says(), node.stage(2)) == (1, Stage.REJECTED)


def test_a_release_that_is_not_signed_changes_nothing(node: Node) -> None:
    before = node.stages.history()
    with pytest.raises(SignatureError):
        node.pull(Rollout(9, "salt", EVERYBODY))
    assert (node.stages.history(), node.says()) == (before, 1)


@pytest.mark.parametrize("how", ["vetoed", "rolled back", "halted in shadow", "committed"])
def test_I5_what_was_tried_once_is_never_tried_again(node: Node, how: str) -> None:
    if how == "vetoed":
        node.offer(2, golden="0" * 64)
    elif how == "rolled back":
        node.offer(2, EVERYBODY)
        node.pull(Rollout(2, "salt", EVERYBODY, halted=True))
    elif how == "halted in shadow":
        node.offer(2)
        node.pull(Rollout(2, "salt", NOBODY, halted=True))
    else:
        node.live(2, node.offer(2, EVERYBODY))
    before = node.stages.history()
    assert before[-1][1] in {Stage.REJECTED, Stage.ROLLED_BACK, Stage.COMMITTED}
    node.toy.put(2)
    for number in (2, 1):
        node.pull(Rollout(number, "salt", EVERYBODY))
    node.open()
    node.pull(Rollout(2, "salt", EVERYBODY))
    assert node.stages.history() == before


def test_a_halted_rollout_takes_its_release_back(node: Node) -> None:
    node.offer(2, EVERYBODY)
    assert node.says() == 2
    node.pull(Rollout(2, "salt", EVERYBODY, halted=True))
    assert (node.says(), node.stage(2)) == (1, Stage.REJECTED)
    assert Stage.ROLLED_BACK in {stage for _, stage, _ in node.stages.history()}


def test_a_rollout_that_was_halted_before_we_saw_it_is_not_begun(node: Node) -> None:
    node.toy.put(2)
    node.pull(Rollout(2, "salt", EVERYBODY, halted=True))
    assert (node.says(), node.stage(2)) == (1, None)


def test_a_node_that_was_away_takes_what_all_others_serve_though_the_newest_release_was_halted(node: Node) -> None:
    node.toy.put(2)
    node.toy.put(3)
    rollout = node.pull(Rollout(3, "salt", NOBODY, halted=True, serving=2))
    assert (node.says(), node.stage(2), node.stage(3)) == (2, Stage.PROBATION, None)
    node.live(2, rollout)
    assert node.stage(2) is Stage.COMMITTED


def test_a_release_that_all_others_serve_is_not_given_up_for_one_that_was_halted(node: Node) -> None:
    node.offer(2)
    node.toy.put(3)
    node.pull(Rollout(3, "salt", NOBODY, halted=True, serving=2))
    assert (node.says(), node.stage(2), node.stage(3)) == (2, Stage.PROBATION, None)


def test_a_newer_release_supersedes_one_in_shadow(node: Node) -> None:
    node.offer(2)
    node.offer(3)
    assert (node.stage(2), node.stage(3), node.says()) == (Stage.REJECTED, Stage.SHADOW, 1)
    assert (2, Stage.REJECTED, "superseded") in node.stages.history()
    assert not node.slots.is_whole(2)


def test_a_newer_release_waits_for_the_end_of_a_probation(node: Node) -> None:
    node.offer(2, EVERYBODY)
    third = node.offer(3)
    assert (node.stage(2), node.stage(3), node.says()) == (Stage.PROBATION, None, 2)
    node.live(2, third)
    assert node.stage(2) is Stage.COMMITTED
    node.pull(third)
    assert (node.stage(3), node.says()) == (Stage.SHADOW, 2)


@pytest.mark.parametrize("committed", [False, True], ids=["on probation", "committed"])
def test_a_withdrawal_is_a_newer_number_that_skips_shadow_and_probation(node: Node, committed: bool) -> None:
    rollout = node.offer(2, EVERYBODY)
    if committed:
        node.live(2, rollout)
    node.offer(3, EVERYBODY, withdraws=2, like=1)
    assert (node.says(), node.stage(3)) == (3, Stage.COMMITTED)
    assert node.stage(2) is (Stage.COMMITTED if committed else Stage.REJECTED)


def test_a_withdrawal_with_weights_that_were_never_served_here_stands_probation(node: Node) -> None:
    node.offer(2, EVERYBODY)
    rollout = node.offer(3, EVERYBODY, withdraws=2)
    assert (node.stage(3), node.serving.rival and node.serving.rival.release) == (Stage.PROBATION, 1)
    node.live(2, rollout)
    assert node.stage(3) is Stage.COMMITTED


def test_a_withdrawal_of_what_it_would_be_compared_with_ends_its_probation_at_once(node: Node) -> None:
    node.live(2, node.offer(2, EVERYBODY))
    node.offer(3, EVERYBODY, withdraws=2)
    assert (node.says(), node.stage(3)) == (3, Stage.COMMITTED)
    node.offer(4, EVERYBODY)
    assert (node.says(), node.stage(4)) == (4, Stage.PROBATION)


@pytest.mark.parametrize("harmed", [False, True], ids=["on probation", "refused"])
def test_a_node_that_is_told_no_truth_still_takes_what_everybody_serves(node: Node, harmed: bool) -> None:
    """The trial ends when a newer release is open to all, and not before."""
    rollout = node.offer(2, EVERYBODY, right=not harmed, quota=100)
    if harmed:
        node.live(30, rollout)
    before = node.stage(2)
    assert before is (Stage.ROLLED_BACK if harmed else Stage.PROBATION)
    node.toy.put(3)
    node.pull(Rollout(3, "salt", NOBODY, serving=2))
    assert (node.stage(2), node.stage(3)) == (before, None)
    node.pull(Rollout(3, "salt", EVERYBODY, serving=3))
    assert (node.says(), node.stage(2), node.stage(3)) == (3, Stage.REJECTED, Stage.PROBATION)
    assert node.serving.rival is not None
    assert node.serving.rival.release == 1  # the last that was proved here


def test_while_a_trial_goes_on_the_newer_release_is_not_downloaded(node: Node) -> None:
    node.offer(2, EVERYBODY)
    node.toy.fetched.clear()
    third = node.offer(3)
    assert node.toy.fetched == []
    node.live(2, third)
    node.pull(third)
    assert node.toy.fetched == [3]


def test_a_trial_does_not_end_before_the_newer_release_is_in_hand(node: Node) -> None:
    node.offer(2, EVERYBODY, quota=100)
    with pytest.raises(SignatureError):
        node.offer(4, serving=3)
    assert (node.says(), node.stage(2)) == (2, Stage.PROBATION)


@pytest.mark.parametrize(
    ("waves", "stage"), [(1, Stage.PROBATION), (0, Stage.REJECTED)], ids=["it goes on to its end", "it is superseded"]
)
def test_a_trial_whose_wave_opens_while_a_newer_release_is_fetched_goes_on(
    node: Node, monkeypatch: pytest.MonkeyPatch, waves: int, stage: Stage
) -> None:
    """A child pulls, and the node's own process settles meanwhile."""
    node.offer(2, quota=100)
    child = Node(node.folder, node.toy)
    real = node.toy.release

    def slow(number: int) -> Any:
        for _ in range(waves):
            node.serving.settle(Rollout(2, "salt", EVERYBODY))
        return real(number)

    monkeypatch.setattr(node.toy, "release", slow)
    node.toy.put(3)
    child.serving.consider(Rollout(3, "salt", NOBODY), node.toy)
    node.serving.settle(None)
    assert (node.stage(2), node.stage(3)) == (stage, Stage.SHADOW if stage is Stage.REJECTED else None)
    assert node.says() == (2 if waves else 1)
    child.store.close()


@pytest.mark.parametrize("owner", ["settle", "consider"])
def test_the_process_of_a_node_and_its_child_move_releases_in_turn(
    node: Node, monkeypatch: pytest.MonkeyPatch, owner: str
) -> None:
    """Whoever moves a release holds the slots."""
    held: list[bool] = []
    real = StageLog.append

    def append(log: StageLog, *move: Any) -> None:
        with pytest.raises(BlockingIOError), durable.held(node.folder / "slots" / "slots.lock"):
            pass
        held.append(True)
        real(log, *move)

    rollout = Rollout(2, "salt", EVERYBODY)
    node.toy.put(2)
    if owner == "settle":
        node.serving.consider(rollout, node.toy)
    monkeypatch.setattr(StageLog, "append", append)
    if owner == "settle":
        node.serving.settle(rollout)
    else:
        node.serving.consider(rollout, node.toy)
    assert len(held) == (3 if owner == "settle" else 1)


def test_a_node_that_missed_a_withdrawal_does_not_go_back_to_what_it_took_back(node: Node) -> None:
    """2 was withdrawn by 3, and 3 by 4, which goes back to the weights of 1; the node saw 4 only."""
    node.live(2, node.offer(2, EVERYBODY))
    node.offer(4, EVERYBODY, withdraws=3, like=1, base=1)
    assert (node.says(), node.stage(4), node.slots.pointer()) == (4, Stage.COMMITTED, Pointer(4, None))


def test_a_withdrawn_release_is_no_rival_of_a_later_one(node: Node) -> None:
    node.live(2, node.offer(2, EVERYBODY))
    node.offer(3, EVERYBODY, withdraws=2, like=1, base=1)
    damage(node.slots.path(3))
    del node.toy.shelf[3]
    node.open()
    rollout = node.offer(4, EVERYBODY)
    node.serving.settle(rollout)
    assert (node.says(), node.serving.rival) == (4, None)


def test_a_withdrawn_release_is_no_way_back(node: Node) -> None:
    node.live(2, node.offer(2, EVERYBODY))
    node.offer(3, EVERYBODY, withdraws=2, like=1)
    pointer = node.slots.pointer()
    assert pointer is not None
    assert (pointer.active, pointer.previous) == (3, None)


@pytest.mark.parametrize(
    ("name", "serves"),
    [
        pytest.param("artifact.onnx", 1, id="artifact"),
        pytest.param("manifest.json", 1, id="manifest"),
        pytest.param("golden.bin", 2, id="golden inputs, which only admission needs"),
    ],
)
def test_I3_a_node_whose_active_release_was_damaged_answers_with_the_one_before(
    node: Node, name: str, serves: int
) -> None:
    node.live(2, node.offer(2, EVERYBODY))
    damage(node.slots.path(2).with_name(name))
    node.open()
    assert node.says() == serves
    node.pull(Rollout(2, "salt", EVERYBODY))  # the coordinator still has the bytes
    assert node.says() == 2
    assert ("repaired", {"release": 2}) in node.events


@pytest.mark.parametrize("name", ["artifact.onnx", "manifest.json"])
@pytest.mark.parametrize("stage", [Stage.SHADOW, Stage.PROBATION])
def test_I3_a_damaged_candidate_or_predecessor_does_not_silence_a_node(node: Node, stage: Stage, name: str) -> None:
    threshold = NOBODY if stage is Stage.SHADOW else EVERYBODY
    node.offer(2, threshold)
    damaged, active = (2, 1) if stage is Stage.SHADOW else (1, 2)
    damage(node.slots.path(damaged).with_name(name))
    node.open()
    assert node.says() == active
    rollout = node.pull(Rollout(2, "salt", threshold))
    assert node.serving.rival is not None
    assert node.serving.rival.release == damaged
    assert node.stage(2) is stage
    node.live(2, rollout)
    assert node.says() == active


@pytest.mark.parametrize("lost", [1, 2], ids=["the one two back", "the one before"])
def test_I3_a_damaged_release_that_cannot_be_fetched_again_keeps_no_newer_one_from_being_taken(
    node: Node, lost: int
) -> None:
    node.live(2, node.offer(2, EVERYBODY))
    damage(node.slots.path(lost))
    del node.toy.shelf[lost]
    node.open()
    rollout = node.offer(3, EVERYBODY)
    node.serving.settle(rollout)
    assert (node.says(), node.stage(3)) == (3, Stage.PROBATION)
    node.live(2, rollout)
    assert node.stage(3) is Stage.COMMITTED
    assert {fields["release"] for event, fields in node.events if event == "unrepaired"} == {lost}


def test_a_release_on_probation_is_compared_with_the_newest_that_is_whole(node: Node) -> None:
    """The one before it is damaged and cannot be had: it can still go back, to the one before that."""
    node.live(2, node.offer(2, EVERYBODY))
    damage(node.slots.path(2))
    del node.toy.shelf[2]
    node.open()
    rollout = node.offer(3, EVERYBODY, right=False, quota=100)
    node.serving.settle(rollout)
    assert node.says() == 3
    assert node.serving.rival is not None
    assert node.serving.rival.release == 1
    node.live(30, rollout)
    assert (node.says(), node.stage(3)) == (1, Stage.ROLLED_BACK)


@pytest.mark.parametrize("right", [True, False], ids=["on probation", "refused"])
def test_I4_what_is_learned_beside_a_damaged_release_does_not_depend_on_what_was_found(node: Node, right: bool) -> None:
    """Nothing watches where the release on trial cannot be loaded, refused or not."""
    rollout = node.offer(2, EVERYBODY, right=right, quota=100)
    node.live(30, rollout)
    assert node.stage(2) is (Stage.PROBATION if right else Stage.ROLLED_BACK)
    damage(node.slots.path(2))
    node.open()
    assert (node.says(), node.serving.rival) == (1, None)


@pytest.mark.parametrize("right", [True, False], ids=["in shadow", "refused"])
def test_I4_a_withdrawal_ends_its_trial_as_soon_where_it_was_refused(node: Node, right: bool) -> None:
    node.live(2, node.offer(2, EVERYBODY))
    in_shadow = node.offer(3, withdraws=2, right=right, quota=100)
    node.live(30, in_shadow)
    assert node.stage(3) is (Stage.SHADOW if right else Stage.VETOED)
    node.pull(Rollout(3, "salt", EVERYBODY))
    assert node.stage(3) is (Stage.COMMITTED if right else Stage.REJECTED)
    assert node.serving.rival is None


@pytest.mark.parametrize("admission", ["goes on", "fails"])
def test_a_release_that_a_child_took_back_answers_no_more_whatever_becomes_of_the_next(
    node: Node, monkeypatch: pytest.MonkeyPatch, admission: str
) -> None:
    """A child pulls the withdrawal, and the node's own process admits it, which takes a while."""
    said: list[int] = []

    def admit_slowly(*_: object) -> None:
        said.append(node.says())
        if admission == "fails":
            raise StoreError("no memory for it now")

    rollout = node.offer(2, EVERYBODY, quota=100)
    assert node.says() == 2
    child = Node(node.folder, node.toy)
    node.toy.put(3, withdraws=2, like=1)
    child.serving.consider(Rollout(3, "salt", EVERYBODY), node.toy)
    monkeypatch.setattr(node.serving, "_admit", admit_slowly)
    with suppress(StoreError):
        node.serving.settle(rollout)
    assert said == [1]
    child.store.close()


def test_repairs_come_after_all_that_is_more_urgent(node: Node) -> None:
    node.live(2, node.offer(2, EVERYBODY))
    node.offer(3, EVERYBODY, quota=100)
    damage(node.slots.path(2))
    node.toy.fetched.clear()
    node.offer(4, EVERYBODY, withdraws=3, like=1)
    assert node.toy.fetched == [4, 2]


def test_a_release_that_was_damaged_before_it_was_admitted_waits_for_its_repair(node: Node) -> None:
    node.toy.put(2)
    rollout = Rollout(2, "salt", EVERYBODY)
    node.serving.consider(rollout, node.toy)
    damage(node.slots.path(2))
    node.serving.settle(rollout)
    assert node.stage(2) is Stage.STAGED
    node.pull(rollout)
    assert node.stage(2) is Stage.PROBATION


def test_provisioning_again_fails_where_nothing_can_be_fetched_again(node: Node) -> None:
    damage(node.slots.path(1))
    node.toy.shelf.clear()
    node.open()
    with pytest.raises(TrustError, match="n1: what it served is damaged, and could not be fetched again"):
        node.serving.provision(node.toy, 1)


@pytest.mark.parametrize("name", ["manifest.json", "digests.json", "artifact.onnx", "golden.bin"])
def test_a_release_on_probation_that_harms_goes_back_whatever_of_it_was_damaged(node: Node, name: str) -> None:
    rollout = node.offer(2, EVERYBODY, right=False, quota=100)
    damage(node.slots.path(2).with_name(name))
    node.live(30, rollout)
    assert (node.says(), node.stage(2)) == (1, Stage.ROLLED_BACK)


def test_a_release_whose_manifest_is_damaged_is_not_proved(node: Node) -> None:
    rollout = node.offer(2, EVERYBODY, quota=2)
    damage(node.slots.path(2).with_name("manifest.json"))
    node.live(5, rollout)
    assert node.stage(2) is Stage.PROBATION
    node.pull(rollout)
    assert node.stage(2) is Stage.COMMITTED


def test_a_withdrawal_is_served_though_another_slot_was_damaged(node: Node) -> None:
    node.live(2, node.offer(2, EVERYBODY))
    rollout = node.offer(3, EVERYBODY)
    damage(node.slots.path(2).with_name("manifest.json"))
    del node.toy.shelf[2]
    node.live(2, rollout)
    assert node.stage(3) is Stage.COMMITTED
    node.offer(4, EVERYBODY, withdraws=3, like=1)
    assert (node.says(), node.stage(4)) == (4, Stage.COMMITTED)


def test_a_way_back_needs_no_room_on_the_disk_for_the_pointer(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    rollout = node.offer(2, EVERYBODY, right=False, quota=100)
    with monkeypatch.context() as patch:
        patch.setattr(durable, "write", full)
        with pytest.raises(OSError, match="No space"):
            node.live(30, rollout)
        assert (node.says(), node.stage(2), node.slots.pointer()) == (1, Stage.ROLLED_BACK, Pointer(2, 1))
        node.open()
        assert node.says() == 1
        assert node.events[-1] == ("kept", {"part": "pointer", "reason": "[Errno 28] No space left on device"})
    node.serving.settle(rollout)
    assert node.slots.pointer() == Pointer(1, None)


def test_a_release_that_was_withdrawn_ends_before_the_withdrawal_is_downloaded(node: Node) -> None:
    node.offer(2, EVERYBODY, quota=100)
    node.toy.put(3, withdraws=2, like=1)
    manifest = node.toy.shelf[3][0]

    class Cut:
        manifest = staticmethod(lambda _: manifest)
        release = staticmethod(node.toy.release)

    del node.toy.shelf[3]
    with pytest.raises(SignatureError):
        node.serving.consider(Rollout(3, "salt", EVERYBODY), Cut())  # type: ignore[arg-type]
    assert (node.says(), node.stage(2), node.slots.pointer()) == (1, Stage.REJECTED, Pointer(1, None))


@pytest.mark.parametrize("refused", [False, True], ids=["in shadow", "vetoed"])
def test_provisioning_again_repairs_and_proves_nothing(node: Node, refused: bool) -> None:
    """A release on trial stays on trial when a node that lost its first release is enrolled again."""
    rollout = node.offer(2, right=not refused)
    node.live(30, rollout)
    before = node.stages.history()
    assert before[-1][1] is (Stage.VETOED if refused else Stage.SHADOW)
    damage(node.slots.path(1))
    node.open()
    assert node.serving.active is None
    node.serving.provision(node.toy, 1)
    assert (node.says(), node.stages.history()) == (1, before)


def test_I3_a_node_that_lost_every_slot_answers_again_once_it_has_pulled(node: Node) -> None:
    damage(node.slots.path(1))
    node.open()
    assert node.serving.active is None
    node.pull(Rollout(1, "salt", EVERYBODY))
    assert node.says() == 1


def test_I3_after_a_rollback_there_is_still_a_release_to_fall_back_on(node: Node) -> None:
    node.live(2, node.offer(2, EVERYBODY))
    node.offer(3, EVERYBODY)
    node.pull(Rollout(3, "salt", EVERYBODY, halted=True))
    assert node.slots.pointer() == Pointer(2, 1)
    damage(node.slots.path(2))
    node.open()
    assert node.says() == 1


@pytest.mark.parametrize("data", [b"", b"{", b'{"active": 1, "previous": null}'], ids=["empty", "half", "old"])
def test_I3_a_pointer_that_is_damaged_or_behind_is_put_right_by_the_log(node: Node, data: bytes) -> None:
    node.offer(2, EVERYBODY)
    (node.folder / "slots" / "active.json").write_bytes(data)
    node.open()
    assert (node.says(), node.slots.pointer()) == (2, Pointer(2, 1))


def test_I7_the_evidence_and_the_move_are_on_the_disk_before_the_pointer_moves(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = Slots.point

    def watch(slots: Slots, pointer: Pointer) -> None:
        other = sqlite3.connect(node.folder / "node.db")
        (stage,) = other.execute("select stage from stage order by seq desc limit 1").fetchone()
        (compared,) = other.execute("select count(*) from reading where rival_answer is not null").fetchone()
        other.close()
        seen.append((slots.pointer(), pointer, stage, compared))
        real(slots, pointer)

    node.live(3, node.offer(2))
    windows = node.toy.points(4)
    for x in windows.x:
        assert node.serving.active is not None
        node.shadow.record(x, node.serving.active.answer(x))
    monkeypatch.setattr(Slots, "point", watch)
    node.serving.settle(Rollout(2, "salt", EVERYBODY))
    assert seen[-1] == (Pointer(1, None), Pointer(2, 1), "probation", 3 + 4)


def crash_after(stage: Stage) -> Callable[[Node, pytest.MonkeyPatch], None]:
    def arrange(node: Node, patch: pytest.MonkeyPatch) -> None:
        real = StageLog.append

        def append(log: StageLog, release: int, to: Stage, reason: str) -> None:
            real(log, release, to, reason)
            if to is stage:
                raise PowerCut

        patch.setattr(StageLog, "append", append)

    return arrange


@pytest.mark.parametrize(
    ("stage", "arrange", "serves"),
    [
        pytest.param(Stage.STAGED, crash_after(Stage.STAGED), 1, id="after staging"),
        pytest.param(Stage.ADMITTED, crash_after(Stage.ADMITTED), 1, id="after admission"),
        pytest.param(Stage.SHADOW, crash_after(Stage.SHADOW), 1, id="after entering shadow"),
        pytest.param(Stage.PROBATION, crash_after(Stage.PROBATION), 2, id="between promotion and pointer"),
    ],
)
def test_a_crash_between_two_moves_heals_when_the_node_is_opened_again(
    node: Node, monkeypatch: pytest.MonkeyPatch, stage: Stage, arrange: Callable[..., None], serves: int
) -> None:
    with monkeypatch.context() as patch:
        arrange(node, patch)
        with pytest.raises(PowerCut):
            node.offer(2, EVERYBODY)
    node.open()
    assert (node.stage(2), node.says()) == (stage, serves)
    assert node.slots.pointer() == (Pointer(2, 1) if serves == 2 else Pointer(1, None))
    node.live(2, node.pull(Rollout(2, "salt", EVERYBODY)))
    assert (node.says(), node.stage(2)) == (2, Stage.COMMITTED)


def test_a_crash_while_the_pointer_is_written_heals_when_the_node_is_opened_again(node: Node) -> None:
    node.offer(2)
    with power_for_writes(0), pytest.raises(PowerCut):
        node.pull(Rollout(2, "salt", EVERYBODY))
    assert node.slots.pointer() == Pointer(1, None)
    node.open()
    assert (node.says(), node.slots.pointer()) == (2, Pointer(2, 1))


@pytest.mark.parametrize("done", range(4))
def test_a_download_that_was_cut_short_is_done_again(node: Node, done: int) -> None:
    with power_for_writes(done), pytest.raises(PowerCut):
        node.offer(2)
    node.open()
    assert (node.stage(2), node.says()) == (None, 1)
    node.offer(2)
    assert node.stage(2) is Stage.SHADOW


def test_a_first_installation_that_was_cut_short_is_finished(
    tmp_path: Path, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path, toy)
    with monkeypatch.context() as patch:
        crash_after(Stage.ADMITTED)(node, patch)
        with pytest.raises(PowerCut):
            node.begin()
    node.open()
    assert node.serving.active is None
    node.begin()
    assert node.says() == 1
    for store in node.stores:
        store.close()


def test_memory_and_disk_agree_on_what_serves_after_every_move(node: Node) -> None:
    for number, quota in ((2, 1), (3, 1), (4, 1)):
        node.live(2, node.offer(number, EVERYBODY, quota=quota))
        pointer = node.slots.pointer()
        assert pointer is not None
        assert pointer.active == node.says() == number
        assert [n for n in range(1, 5) if node.slots.is_whole(n)] == [number - 1, number]


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_withdrawal_takes_effect_only_in_its_wave(node: Node) -> None:
    node.live(2, node.offer(2, EVERYBODY))
    rollout = node.offer(3, NOBODY, withdraws=2)
    assert (node.says(), node.stage(3)) == (2, Stage.SHADOW)
    node.pull(replace(rollout, threshold=EVERYBODY))
    assert node.says() == 3
