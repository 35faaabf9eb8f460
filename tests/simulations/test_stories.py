"""Each story, most at a reduced size: what it promises, by the figures that it tells."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from shutil import copy
from tempfile import mkdtemp
from typing import Any

import jsonschema
import pytest

from coordinator.rollout import Phase
from simulations.clock import START
from simulations.scenario import Wish, scenario
from simulations.stories import STORIES
from simulations.stories.a_new_device import began_with, learned_alone
from simulations.stories.bad_release import Act, act_one, act_two
from simulations.stories.offline_day import AWAKE, HOME, MONTHS
from simulations.stories.poisoned_cohort import ATTACKS, NOBODY, RULES, PoisonedCohort, Reached
from tests.simulations.browser import COLUMNS, Layout, laid_out, needs_browser

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCHEMA = json.loads((ROOT / "docs" / "schemas" / "simulate.schema.json").read_text())

# Without noise a run is the same every time; where the budget is the story, there must be one.
FLAGS = {
    "bad-release": ("--nodes", "8", "--epsilon", "inf"),
    "offline-day": ("--nodes", "8", "--epsilon", "inf"),
    "budget-runs-out": ("--nodes", "4"),
    "poisoned-cohort": ("--epsilon", "inf"),
    "a-new-device": ("--nodes", "4", "--epsilon", "inf"),
}


def edgefleet(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "fleet", "simulate", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


@cache
def played(name: str) -> tuple[Path, dict[str, Any]]:
    """A story's run, once for all its tests."""
    folder = Path(mkdtemp(prefix=f"story-{name}-"))
    shown = edgefleet("--story", name, *FLAGS[name], "--out", "run", "--format", "json", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    return folder / "run", json.loads(shown.stdout)


def figures(name: str) -> dict[str, Any]:
    found: dict[str, Any] = played(name)[1]["story"]["figures"]
    return found


def test_every_story_is_played_here_and_is_in_the_readme() -> None:
    assert FLAGS.keys() == STORIES.keys()
    assert all(f"`{name}`" in README for name in STORIES)


@pytest.mark.parametrize("name", FLAGS)
def test_a_story_warns_of_nothing_that_it_chose_itself(name: str) -> None:
    assert scenario(Wish(story=name)).warnings == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", FLAGS)
def test_a_story_is_told_in_sentences_and_leaves_no_window_without_an_answer(name: str) -> None:
    folder, result = played(name)
    jsonschema.validate(result, SCHEMA)
    story = result["story"]
    assert story == json.loads((folder / "story.json").read_bytes())
    assert (story["name"], story["title"]) == (name, STORIES[name].title)
    assert len(story["told"]) == 3
    assert story["figures"]["answers"] > 0
    assert story["figures"]["failed_answers"] == 0
    assert result["nodes_unsigned"] == 0


@pytest.mark.slow
def test_bad_release_is_vetoed_in_shadow_and_nobody_ever_answers_with_it() -> None:
    told = figures("bad-release")
    assert told["act_one_phase"] == "kept-old"
    assert told["act_one_vetoes"] > 0
    assert told["act_one_exposed"] == 0


@pytest.mark.slow
def test_bad_release_that_turns_bad_is_taken_back_by_the_wave_itself_and_halts() -> None:
    told = figures("bad-release")
    assert 0 < told["act_two_exposed"] <= told["act_two_wave"] == 2
    assert told["act_two_rolled_back"] == told["act_two_exposed"] == played("bad-release")[1]["nodes_exposed"]
    assert told["act_two_still_answering"] == 0
    assert told["act_two_phase"] == "halted"
    assert told["withdrawn_by"] == 3


@pytest.mark.slow
def test_bad_release_ends_when_every_node_has_taken_the_withdrawal_and_counts_nobody_as_promoted() -> None:
    folder, result = played("bad-release")
    assert figures("bad-release")["act_two_still_answering"] == 0
    assert result["nodes_promoted"] == 0
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    took = {event["who"] for event in events if event["event"] == "committed" and event["release"] == 3}
    assert len(took) == result["nodes"]


TAKEN_BACK = Act(Phase.HALTED, withdraws=0, withdrawn_by=3, vetoed=0, exposed=4, back=3, still=0)


def test_bad_release_tells_act_two_only_where_it_was_played() -> None:
    assert "turned bad when the gyroscopes drifted: 4 nodes answered with it" in act_two(TAKEN_BACK, 4)
    assert "halted and taken back by release 3" in act_two(TAKEN_BACK, 4)
    kept = act_two(replace(TAKEN_BACK, phase=Phase.KEPT_OLD, withdrawn_by=None, exposed=0, back=0), 4)
    assert kept.startswith("Act two was not played")
    assert "the rollout was kept-old" in kept
    assert "turned bad" not in kept
    assert act_two(replace(TAKEN_BACK, phase=Phase.DONE, withdraws=1), 4).endswith(
        "release 1 had to be taken back first."
    )


def test_bad_release_says_of_act_one_how_its_rollout_ended() -> None:
    assert "no wave opened, and no node ever" in act_one(Act(Phase.KEPT_OLD, 0, None, 10, 0, 0, 0), 16)
    assert "its rollout was halted, and 2 nodes ever" in act_one(Act(Phase.HALTED, 0, 2, 10, 2, 2, 0), 16)


@pytest.mark.slow
def test_bad_release_as_it_is_played_without_flags_keeps_its_promises_whatever_the_noise(tmp_path: Path) -> None:
    shown = edgefleet("--story", "bad-release", "--out", "run", "--format", "json", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    result = json.loads(shown.stdout)
    told, sentences = result["story"]["figures"], result["story"]["told"]
    assert (result["nodes"], told["failed_answers"], told["act_two_still_answering"]) == (16, 0, 0)
    assert (told["act_one_phase"], told["act_one_exposed"]) == ("kept-old", 0)
    assert sentences[1].startswith("Act two was not played") is (told["act_two_phase"] == "kept-old")
    assert told["act_two_rolled_back"] == told["act_two_exposed"] <= told["act_two_wave"] == 4
    assert (told["act_two_rolled_back"] > 0) is (told["act_two_phase"] == "halted")


@pytest.mark.slow
def test_offline_day_goes_on_learning_and_counts_what_waited_once() -> None:
    told = figures("offline-day")
    assert told["rounds_closed_meanwhile"] == 24
    assert told["day_old_sessions_counted"] == told["nodes_away_a_day"] == 3
    assert told["day_old_staleness"] == 25
    assert (told["max_staleness"], told["usual_max_staleness"]) == (26, 3)
    assert told["older_sessions_kept_back"] == 1


@pytest.mark.slow
def test_offline_day_goes_on_learning_within_the_budget(tmp_path: Path) -> None:
    shown = edgefleet("--story", "offline-day", "--nodes", "4", "--out", "run", "--format", "json", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    result = json.loads(shown.stdout)
    told = result["story"]["figures"]
    assert (told["rounds_closed_meanwhile"], told["failed_answers"]) == (24, 0)
    assert told["day_old_sessions_counted"] == told["nodes_away_a_day"]
    assert 0 < result["epsilon_max"] <= 8


@pytest.mark.slow
def test_offline_day_stages_nothing_expired_and_brings_nobody_back_in_a_crowd() -> None:
    told = figures("offline-day")
    assert told["expired_metadata_refused"] == MONTHS - 1
    assert told["staged_while_expired"] == 0
    assert told["downloads_after_return"] == told["nodes_away_a_day"]
    assert told["downloads_in_busiest_minute"] == 1
    assert told["connected_in_busiest_minute"] == 4
    assert told["on_newest_release"] == 8


@pytest.mark.slow
def test_offline_day_offers_the_wanderer_something_to_stage_that_has_expired() -> None:
    lines = (played("offline-day")[0] / "events.jsonl").read_text().splitlines()
    events = [event for event in map(json.loads, lines) if event.get("release") == 1]
    offered = next(event["at"] for event in events if event["event"] == "release")
    wanderers = max((event["at"], event["who"]) for event in events if event["event"] == "staged")
    assert offered < (START + AWAKE * timedelta(hours=1)).isoformat(), "or else the mirror has no release"
    assert wanderers >= ((START + HOME).isoformat(), "")


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("width", COLUMNS)
def test_offline_day_has_a_report_whose_eight_months_fit_on_a_telephone(tmp_path: Path, width: int) -> None:
    copy(played("offline-day")[0] / "report.html", tmp_path)
    assert laid_out(tmp_path, "report.html", width) == Layout(width, COLUMNS[width])


@pytest.mark.slow
def test_budget_runs_out_of_one_node_after_the_other_and_the_ledger_says_so() -> None:
    told = figures("budget-runs-out")
    assert told["nodes_spent"] == told["rounds_as_planned"] == 3
    assert told["first_spent_after"] < told["last_spent_after"]
    assert told["updates_in_last_round"] == told["updates_in_first_round"] - told["nodes_spent"] == 1
    assert 0.99 * told["epsilon"] <= told["epsilon_of_spent"] <= told["epsilon"]


@pytest.mark.slow
def test_budget_that_ran_out_stops_neither_releases_nor_a_head_of_ones_own() -> None:
    told = figures("budget-runs-out")
    assert told["spent_on_newest_release"] == told["nodes_spent"]
    assert told["spent_personalised_accuracy"] > told["spent_accuracy"]


@pytest.mark.slow
def test_poisoned_cohort_costs_the_default_rule_four_points_at_most_and_ends_the_plain_mean() -> None:
    told = figures("poisoned-cohort")
    assert (told["hostile"], told["nodes"]) == (4, 16)
    assert told["most_points_lost_by_default"] <= 4
    assert told["most_points_lost_by_plain_mean"] > 30
    for attack in ("sign_flip", "inner_product"):
        assert told[f"{attack}_mean_accuracy"] < told["clean_accuracy"] - 0.2


def test_poisoned_cohort_tells_each_attack_with_its_strength_under_both_rules_and_what_it_does_not_show() -> None:
    reached = {(attack, rule): Reached(0.6, 0.5) for attack in ATTACKS for rule in RULES}
    reached["inner-product", RULES[0]] = Reached(0.4, 0.3)
    (who, how, whom), told = PoisonedCohort()._sentences(16, {**reached, (NOBODY, RULES[0]): Reached(0.9, 0.8)})
    assert all(attack in who and attack in how for attack in ATTACKS)
    assert "5 rounds of 12 releases" in who
    assert "the gang's mean 4 times, turned around" in who
    assert "inner-product 40% and 60%" in how
    assert "the plain mean was the better rule in 1 of 4" in how
    assert "under noise of its own costs the default far more: docs/accuracy.md has the figures" in whom
    assert (told["rounds"], told["releases_a_round"], told["inner_product_strength"]) == (5, 12, 4.0)


@pytest.mark.parametrize(("nodes", "quorum"), [(4, 2), (8, 3), (10, 8), (16, 8)])
def test_a_new_device_does_not_keep_the_fleet_from_a_round_before_it_comes(nodes: int, quorum: int) -> None:
    plan = scenario(Wish(story="a-new-device", nodes=nodes))
    assert plan.settings.round.min_updates == quorum <= nodes - 2, "the last person wears two"


@pytest.mark.slow
def test_a_new_device_answers_at_once_with_what_the_fleet_learned() -> None:
    told = figures("a-new-device")
    assert told["first_release"] > 0
    assert told["joined_hour"] > 0
    assert told["fleet_accuracy"] > told["own_accuracy_after_4_windows"]
    assert told["personalised_accuracy"] > told["fleet_accuracy"]
    sentence = played("a-new-device")[1]["story"]["told"][1]
    assert f"release 0, made from public data alone, is right on {told['release_0_accuracy']:.0%}" in sentence


def test_a_new_device_holds_the_fleets_model_against_release_0_and_owes_release_0_to_nobody() -> None:
    trained, untrained = began_with(1, 0.74, 0.81, 0.99), began_with(0, 0.81, 0.81, 1.0)
    assert "gave them a model that is right on 74% of these, where release 0" in trained
    assert "is right on 81%; with a head of their own the fleet's is right on 99%" in trained
    assert "No trained release was served by all when they came" in untrained
    assert "gave them a model" not in untrained


@pytest.mark.parametrize(
    ("own", "catches_up_after", "tried"),
    [
        pytest.param(80, 8, [4, 8, 80], id="after a doubling"),
        pytest.param(80, 70, [4, 8, 16, 32, 64, 80], id="with the last of its windows"),
        pytest.param(50, 50, [4, 8, 16, 32, 50], id="with windows that it has"),
        pytest.param(50, 99, [4, 8, 16, 32, 50], id="never"),
    ],
)
def test_a_new_devices_own_model_is_tried_until_it_catches_up_and_with_all_its_windows(
    own: int, catches_up_after: int, tried: list[int]
) -> None:
    alone = learned_alone(lambda windows: float(windows >= catches_up_after), own, 0.9)
    assert list(alone) == tried
    assert (max(alone.values()) > 0.9) is (catches_up_after <= own)


@pytest.mark.slow
def test_a_story_goes_on_by_its_folder_alone() -> None:
    folder, result = played("a-new-device")
    assert Wish.saved(folder)[0].story == "a-new-device"
    (folder / "result.json").unlink()
    shown = edgefleet("--resume", str(folder), "--format", "json", cwd=folder.parent)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["story"] == result["story"]
    again = edgefleet("--resume", str(folder), "--format", "json", cwd=folder.parent)
    assert again.stdout == shown.stdout, "it is over: nothing is measured again, and its wall time stays"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["--story", "bad-realese"], ", ".join(STORIES), id="unknown"),
        pytest.param(["--story", "offline-day", "--rounds", "5"], "sets --rounds itself", id="rounds"),
        pytest.param(["--story", "bad-release", "--model", "cnn"], "sets --model itself", id="model"),
        pytest.param(["--story", "poisoned-cohort", "--nodes", "7"], "needs 8 or more", id="too few nodes"),
        pytest.param(["--story", "budget-runs-out", "--epsilon", "inf"], "that has an end", id="no budget"),
        pytest.param(["--resume", "run", "--story", "offline-day"], "leave out the other flags", id="resume"),
    ],
)
def test_a_story_that_cannot_be_told_is_one_clear_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    shown = edgefleet(*arguments, cwd=tmp_path)
    assert (shown.returncode, len(shown.stderr.splitlines())) == (2, 1), shown.stderr
    assert said in shown.stderr
    assert not list(tmp_path.iterdir())


def test_a_budget_that_must_run_out_has_an_end_wherever_it_was_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFLEET_PRIVACY__EPSILON", "inf")
    shown = edgefleet("--story", "budget-runs-out", "--out", "run", cwd=tmp_path)
    assert (shown.returncode, len(shown.stderr.splitlines())) == (2, 1), shown.stderr
    assert "that has an end" in shown.stderr
    assert not list(tmp_path.iterdir())
    assert scenario(Wish(story="budget-runs-out", epsilon=8.0)).settings.privacy.epsilon == 8, "a flag comes after"


def test_a_story_plays_the_built_in_task_only(tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text('[task]\nfile = "task.py:TASK"\n')
    shown = edgefleet("--story", "offline-day", cwd=tmp_path)
    assert (shown.returncode, len(shown.stderr.splitlines())) == (2, 1), shown.stderr
    assert "use another folder" in shown.stderr
