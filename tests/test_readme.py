"""The README says what is so."""

import re
import subprocess
import sys
from pathlib import Path

from fleet import cli, errors
from fleet.__main__ import INTERRUPTED

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 150


CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace(".ci-venv/bin/", "").replace("--quiet ", "")


def test_ci_runs_the_readmes_first_line_with_no_more_than_it_installs() -> None:
    command = next(line for line in README.splitlines() if line.startswith("python3 -m venv"))
    _, install, simulate = (part.strip().removeprefix(".venv/bin/") for part in command.split("&&"))
    assert CI.index(f"{install}\n") < CI.index(f"{simulate} ") < CI.index("pip install -e '.[test]'")


def test_ci_runs_the_readmes_test_command() -> None:
    command = next(line for line in README.splitlines() if line.startswith(".venv/bin/pip install"))
    install, test = (part.strip().removeprefix(".venv/bin/") for part in command.split("&&"))
    assert {install, test} <= set(CI.splitlines())


def test_the_exit_codes_of_the_readme_are_those_of_the_errors() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    raised = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type)}
    assert listed == raised | {0, INTERRUPTED}
    assert all(re.search(rf"\b{code} ", cli.__doc__ or "") for code in listed)


def test_the_error_tree_is_drawn_as_it_is() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    drawn = re.findall(r"(\w+Error)\b", errors.__doc__ or "")
    assert sorted(drawn) == sorted(kind.__name__ for kind in kinds)


def test_every_flag_in_the_readme_exists() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "fleet", "simulate", "--help"], capture_output=True, text=True, check=True
    )
    block = next(part for part in README.split("```text\n")[1:] if "edgefleet simulate" in part)
    flags = re.findall(r"--[a-z]+", block.split("```")[0])
    assert flags
    assert all(flag in shown.stdout for flag in flags)
