"""``edgefleet release``: releases of a running coordinator."""

from typing import Annotated

import typer

from coordinator.shown import HERE, Folder, Formatted, show_fields, show_rows
from fleet.output import Format

release = typer.Typer(no_args_is_help=True, help="List releases; show what one is made of.")


@release.command("list")
def list_(folder: Folder = HERE, format_: Formatted = Format.TEXT) -> None:
    """List all releases, oldest first."""
    from coordinator.admin_client import AdminClient

    columns = ("number", "base", "phase", "wave", "paused", "withdraws", "since")
    show_rows(AdminClient(folder).get("releases"), columns, format_, empty="there is no release")


@release.command()
def show(
    number: Annotated[int, typer.Argument(help="The release.", min=0)],
    folder: Folder = HERE,
    format_: Formatted = Format.TEXT,
) -> None:
    """Show one release: digests, runtime, and where its rollout stands."""
    from coordinator.admin_client import AdminClient

    show_fields(AdminClient(folder).get(f"releases/{number}"), format_)
