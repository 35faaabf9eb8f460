"""``edgefleet init``: writes a folder with a task and settings that work."""

import json
import shutil
import tempfile
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from fleet.errors import UsageError
from fleet.output import Format

_TEMPLATE = Path(__file__).parent / "templates" / "digits"


def init(
    name: str,
    format_: Annotated[Format, typer.Option("--format", help="Lines for people, or one JSON object.")] = Format.TEXT,
) -> None:
    """Write NAME, a new or empty folder, with an example task, its settings, and a page on both."""
    if not name:
        raise UsageError("NAME is empty; choose one")
    folder = Path(name)
    write(folder)
    if format_ is Format.JSON:
        files = sorted(path.name for path in folder.iterdir())
        typer.echo(json.dumps({"folder": str(folder), "files": files}))
        return
    typer.echo(f"Wrote {folder} with task.py, fleet.toml and README.md. Next:")
    for step in (f"cd {quote(str(folder))}", "edgefleet check", "edgefleet simulate"):
        typer.echo(f"  {step}")


def write(folder: Path) -> None:
    """Put a copy of the template at ``folder``: all of it or, if that fails, none of it.

    Raises:
        UsageError: Something is there already, or the folder cannot be written.
    """
    try:
        if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
            raise UsageError(f"{folder} is already there and not an empty folder; choose another name")
        with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=".edgefleet-") as beside:
            made = Path(beside) / "made"
            shutil.copytree(_TEMPLATE, made, ignore=shutil.ignore_patterns("__pycache__"))
            made.replace(folder)
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror or error}; choose another name") from error
