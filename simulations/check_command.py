"""``edgefleet check``: says what would not work, before anything runs."""

import json
import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer

from fleet.errors import MissingExtraError, SettingsError, TaskError, UsageError
from fleet.output import Format
from simulations.extra import check_installed
from simulations.simulate_command import config_here


def check(
    model: Annotated[str | None, typer.Option(help="Of the built-in smartwatch task: features or cnn.")] = None,
    fold: Annotated[int, typer.Option(help="Which person is the public donor.")] = 0,
    format_: Annotated[Format, typer.Option("--format", help="Lines for people, or one JSON object.")] = Format.TEXT,
) -> None:
    """Explain what of fleet.toml's task, or of the built-in one, would not work."""
    config = config_here(model)
    if config and fold:
        raise UsageError("--fold chooses the built-in task's donor, but fleet.toml here names a task; leave one out")
    check_installed()
    try:
        from coordinator.strategy import ServerStep
        from fleet.check import check as findings_of
        from fleet.finding import Finding
        from simulations.once import answers, registration
        from simulations.scenario import Wish, configured
    except ImportError as error:
        raise MissingExtraError(f"{error.name} is missing: pip install 'edgefleet[simulate]'") from error
    with redirect_stdout(sys.stderr):  # what a task's code prints is no finding
        task_, settings = configured(Wish(config, "features" if model is None else model, fold))
        findings = findings_of(task_, settings, lambda task, _: registration(task).warnings, answer=answers)
    try:
        ServerStep(settings.round)
    except SettingsError as error:
        subject, _, message = str(error).partition(": ")
        findings.append(Finding("error", subject, message))
    if format_ is Format.JSON:
        typer.echo(json.dumps([{"level": f.level, "subject": f.subject, "message": f.message} for f in findings]))
    else:
        for finding in findings:
            typer.echo(f"{finding.level}: {finding.subject}: {finding.message}")
    if any(finding.level == "error" for finding in findings):
        raise TaskError(f"{task_.name} would not work as it is")
    if format_ is Format.TEXT:
        typer.echo(f"{task_.name}: fit to run" if not findings else f"{task_.name}: runs, with warnings")
