"""How the commands show what a coordinator said: a table for people, or JSON for programs."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from fleet.output import Format

HERE = Path("coordinator")
MOMENTS = ("opened", "deadline", "since")

Folder = Annotated[Path, typer.Option("--folder", help="The coordinator's folder.")]


Formatted = Annotated[Format, typer.Option("--format", help="Lines for people, or JSON.")]


def show(value: Any, format_: Format, text: str) -> None:
    """Print ``value`` as JSON, or ``text``."""
    typer.echo(json.dumps(value) if format_ is Format.JSON else text)


def show_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], format_: Format, *, empty: str) -> None:
    """Print rows as JSON with all they hold, or the named columns as a table, moments in local time."""
    if format_ is Format.JSON:
        typer.echo(json.dumps(list(rows)))
        return
    if not rows:
        typer.echo(empty)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        cells = ((column, row.get(column)) for column in columns)
        table.add_row(*(_local(value) if column in MOMENTS and value else _cell(value) for column, value in cells))
    Console(soft_wrap=True).print(table)


def show_fields(fields: Mapping[str, Any], format_: Format) -> None:
    """Print one value as JSON, or a field a line."""
    lines = (f"{name.replace('_', ' ')}: {_cell(value)}" for name, value in fields.items())
    show(dict(fields), format_, "\n".join(lines))


def _local(moment: str) -> str:
    """The time of day, with its date unless that is today."""
    local = datetime.fromisoformat(moment).astimezone()
    return f"{local:%H:%M:%S}" if local.date() == datetime.now().astimezone().date() else f"{local:%Y-%m-%d %H:%M:%S}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(part)}" for key, part in value.items())
    return str(value)
