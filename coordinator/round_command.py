"""``edgefleet round``: rounds of a running coordinator."""

import typer

from coordinator.shown import HERE, Folder, Formatted, show, show_rows
from fleet.output import Format

round_ = typer.Typer(no_args_is_help=True, help="List rounds; start one before its time.")


@round_.command("list")
def list_(folder: Folder = HERE, format_: Formatted = Format.TEXT) -> None:
    """List all rounds, oldest first."""
    from coordinator.admin_client import AdminClient

    columns = ("number", "state", "base", "updates", "quorum", "refused", "made", "opened", "deadline")
    show_rows(AdminClient(folder).get("rounds"), columns, format_, empty="no round was opened yet")


@round_.command()
def start(folder: Folder = HERE, format_: Formatted = Format.TEXT) -> None:
    """Open a round now, without waiting for the timer."""
    from coordinator.admin_client import AdminClient

    opened = AdminClient(folder).post("rounds")
    show(opened, format_, f"round {opened['round']} is open until {opened['deadline']}, from base {opened['base']}")
