"""Settings: read strictly, refused in one line that says why, and pinned without loss."""

import json
import math
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import SettingsError
from fleet.settings import PrivacySettings, Settings, load

UNSET: dict[str, str] = {}


def write(folder: Path, text: str) -> Path:
    path = folder / "fleet.toml"
    path.write_text(text)
    return path


def test_without_a_file_there_are_defaults() -> None:
    assert load(None, UNSET) == Settings()


def test_a_file_is_read_into_the_types_that_are_declared(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        [task]
        file = "task.py:TASK"
        [privacy]
        epsilon = 3
        [round]
        every = "90m"
        [release]
        waves = [0.1, 1]
        """,
    )
    settings = load(path, UNSET)
    assert settings.task.file == "task.py:TASK"
    assert settings.privacy.epsilon == 3.0
    assert type(settings.privacy.epsilon) is float
    assert settings.round.every == timedelta(hours=1, minutes=30)
    assert settings.release.waves == (0.1, 1.0)


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "[privacy]\nepsilon = 3\ndelta = 1e-6\n")
    environment = {
        "EDGEFLEET_PRIVACY__EPSILON": "inf",
        "EDGEFLEET_ROUND__MIN_UPDATES": "4",
        "EDGEFLEET_RELEASE__WAVES": "[0.5, 1.0]",
        "PRIVACY__EPSILON": "1",
    }
    settings = load(path, environment)
    assert (settings.privacy.epsilon, settings.privacy.delta) == (math.inf, 1e-6)
    assert settings.round.min_updates == 4
    assert settings.release.waves == (0.5, 1.0)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[privacy]\nepsilom = 3", r"privacy\.epsilom: unknown setting; known are .*epsilon"),
        ("[privcy]\nepsilon = 3", r"privcy: unknown setting; known are privacy, release, round, task"),
        ("privacy = 3", "privacy: must be a section"),
        ("[privacy", "is no TOML"),
        ("[privacy]\nepsilon = 0", r"privacy\.epsilon: 0"),
        ("[privacy]\nepsilon = -1", r"privacy\.epsilon"),
        ("[privacy]\nepsilon = nan", r"privacy\.epsilon"),
        ("[privacy]\nepsilon = true", r"privacy\.epsilon: True is not a valid float"),
        ('[privacy]\nepsilon = "eight"', r"privacy\.epsilon: 'eight'"),
        (f"[privacy]\nepsilon = 1{'0' * 400}", r"privacy\.epsilon"),
        ("[privacy]\ndelta = 0", r"privacy\.delta"),
        ("[privacy]\ndelta = 1", r"privacy\.delta"),
        ("[privacy]\nclipping_norm = inf", r"privacy\.clipping_norm"),
        ("[privacy]\nclipping_norm = 0", r"privacy\.clipping_norm"),
        ("[privacy]\nclipping_norm = 1e300", r"privacy\.clipping_norm"),
        ("[privacy]\nclipping_norm = 1e-300", r"privacy\.clipping_norm"),
        ("[privacy]\nmode = 'device'", r"privacy\.mode: 'device' is not supported"),
        ("[privacy]\nmode = 1", r"privacy\.mode: 1 is not a valid str"),
        ("[privacy]\nplanned_releases = 0", "planned_releases"),
        ("[privacy]\nplanned_releases = 2.5", r"privacy\.planned_releases: 2\.5 is not a valid int"),
        ("[privacy]\npartition_examples = 0", "partition_examples"),
        ("[round]\nmin_updates = 1", r"a mean of 1 hides nobody"),
        ("[round]\nrounds = 201", r"201 rounds, but privacy\.planned_releases is 200"),
        ("[round]\nrounds = 0", r"round\.rounds"),
        ("[round]\nevery = '0s'", r"round\.every"),
        ("[round]\nevery = '1w'", r"round\.every: '1w' is not a valid duration, such as 30s, 10m, 1h or 2d"),
        ("[round]\nevery = '-1h'", r"round\.every"),
        ("[round]\nevery = 60", r"round\.every: 60"),
        ("[round]\nevery = '99999999999d'", r"round\.every"),
        ("[round]\nmax_staleness = -1", r"round\.max_staleness"),
        ("[round]\naggregation = 'median'", r"round\.aggregation: 'median'"),
        ("[round]\nserver_step = 'os.system'", r"round\.server_step"),
        ("[round]\nserver_learning_rate = 0", "server_learning_rate"),
        ("[round]\nserver_momentum = 1", "server_momentum"),
        ("[release]\nwaves = []", r"release\.waves"),
        ("[release]\nwaves = [0.5]", r"release\.waves"),
        ("[release]\nwaves = [0.0, 1.0]", r"release\.waves"),
        ("[release]\nwaves = [0.5, 0.5, 1.0]", r"release\.waves"),
        ("[release]\nwaves = [nan, 1.0]", r"release\.waves"),
        ("[release]\nwaves = 1", r"release\.waves: 1 is not a valid list, such as"),
        ("[release]\nevery_rounds = 0", r"release\.every_rounds"),
        ("[release]\nmargin = 0", "margin"),
        ("[release]\nalpha = 0.5", "alpha"),
        ("[release]\nshadow_windows = 0", "shadow_windows"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line_that_names_it(tmp_path: Path, text: str, names: str) -> None:
    with pytest.raises(SettingsError, match=names) as refused:
        load(write(tmp_path, text), UNSET)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "environment"),
    [
        pytest.param("", {"EDGEFLEET_PRIVACY__EPSILOM": "1"}, id="an unknown key"),
        pytest.param("", {"EDGEFLEET_PRIVACY__EPSILON": ""}, id="empty"),
        pytest.param("", {"EDGEFLEET_PRIVACY_EPSILON": "1"}, id="one underscore"),
        pytest.param("", {"EDGEFLEET_ROUND__MIN_UPDATES": "2.5"}, id="no whole number"),
        pytest.param("privacy = 3", {"EDGEFLEET_PRIVACY__EPSILON": "1"}, id="a key of what is no section"),
    ],
)
def test_a_wrong_variable_is_refused(tmp_path: Path, text: str, environment: dict[str, str]) -> None:
    with pytest.raises(SettingsError):
        load(write(tmp_path, text), environment)


def test_a_file_that_is_not_there_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file or directory; 'edgefleet init NAME' writes an example"):
        load(tmp_path / "fleet.toml", UNSET)


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"[a]\n[a]"])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "fleet.toml").write_bytes(data)
    with pytest.raises(SettingsError, match="is no TOML"):
        load(tmp_path / "fleet.toml", UNSET)


@given(
    st.timedeltas(timedelta(microseconds=1), timedelta(days=10_000)),
    st.floats(1e-3, 1e3),
    st.lists(st.floats(0.01, 0.99), max_size=4, unique=True),
)
def test_pinned_settings_are_read_back_as_they_were(every: timedelta, epsilon: float, waves: list[float]) -> None:
    settings = Settings().changed(
        round={"every": every}, privacy={"epsilon": epsilon}, release={"waves": (*sorted(waves), 1.0)}
    )
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_a_session_has_its_share_of_the_planned_releases() -> None:
    settings = Settings().changed(privacy={"planned_releases": 205}, round={"rounds": 20})
    assert settings.session_releases == 10
    assert settings.session_releases * settings.round.rounds <= 205


def test_changing_settings_checks_them_again() -> None:
    with pytest.raises(SettingsError, match="hides nobody"):
        Settings().changed(round={"min_updates": 1})
    with pytest.raises(SettingsError, match="201 rounds"):
        Settings().changed(round={"rounds": 201})
    assert Settings().changed(privacy={"delta": 1e-6}).privacy == PrivacySettings(delta=1e-6)


def test_the_variables_that_name_folders_for_a_stock_flower_are_no_settings() -> None:
    assert load(None, {"EDGEFLEET_COORDINATOR": "/x", "EDGEFLEET_NODE": "/y"}) == Settings()
