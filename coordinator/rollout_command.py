"""``edgefleet rollout``: the newest release's way into the fleet."""

import typer

from coordinator.shown import HERE, Folder, Formatted, show, show_fields
from fleet.output import Format

rollout = typer.Typer(no_args_is_help=True, help="Watch the newest release's rollout; hold it, or take it back.")


@rollout.command()
def status(folder: Folder = HERE, format_: Formatted = Format.TEXT) -> None:
    """Show where the newest release stands and what nodes reported of it."""
    from coordinator.admin_client import AdminClient

    show_fields(AdminClient(folder).get("rollout"), format_)


@rollout.command()
def pause(folder: Folder = HERE, format_: Formatted = Format.TEXT) -> None:
    """Let the running rollout stand still: no further wave opens, whatever is reported."""
    from coordinator.admin_client import AdminClient

    held = AdminClient(folder).post("rollout/pause")
    show(held, format_, f"release {held['number']} is held in phase {held['phase']}")


@rollout.command()
def resume(folder: Folder = HERE, format_: Formatted = Format.TEXT) -> None:
    """Let a paused rollout go on."""
    from coordinator.admin_client import AdminClient

    going = AdminClient(folder).post("rollout/resume")
    show(going, format_, f"release {going['number']} goes on in phase {going['phase']}")


@rollout.command()
def withdraw(folder: Folder = HERE, format_: Formatted = Format.TEXT) -> None:
    """Take the newest release back, fleet-wide: a new number that points at what was served before."""
    from coordinator.admin_client import AdminClient

    new = AdminClient(folder).post("rollout/withdraw")
    show(new, format_, f"release {new['withdraws']} is withdrawn by release {new['release']}, of base {new['base']}")
