"""``edgefleet coordinator``: runs the cloud's side, and lets nodes in and out."""

import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from coordinator.shown import HERE, Folder, Formatted, show, show_fields, show_rows
from fleet.errors import MissingExtraError, UsageError
from fleet.output import Format

coordinator = typer.Typer(no_args_is_help=True, help="Run a fleet's coordinator; invite and revoke its nodes.")


@coordinator.command()
def serve(
    folder: Annotated[Path, typer.Argument(help="The coordinator's folder; made if it is not there.")] = HERE,
    config: Annotated[Path | None, typer.Option(help="Settings; fleet.toml in the folder by default.")] = None,
    task: Annotated[str, typer.Option(help="task.py:NAME or package.module:NAME, instead of [task] file.")] = "",
    host: Annotated[str, typer.Option(help="Where devices may reach us: an address of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="For devices; 0 for any.", min=0, max=65535)] = 8443,
    admin_port: Annotated[int, typer.Option(help="For these commands, on loopback; 0 for any.", min=0, max=65535)] = 0,
    url: Annotated[str, typer.Option(help="How devices reach us, where it is not http(s)://HOST:PORT.")] = "",
    certificate: Annotated[Path | None, typer.Option(help="Server certificate chain in PEM: turns TLS on.")] = None,
    key: Annotated[Path | None, typer.Option(help="The certificate's private key in PEM.")] = None,
    authority: Annotated[
        Path | None, typer.Option(help="The certificate that devices should pin; that of 'certificates' by default.")
    ] = None,
    format_: Formatted = Format.TEXT,
) -> None:
    """Serve a fleet until Ctrl-C; killed at any instant and started again, it goes on where it was."""
    try:
        from coordinator.certificates import AUTHORITY, FOLDER
        from coordinator.serve import Plan, serving

        ours = folder / FOLDER / AUTHORITY
        if (
            certificate
            and authority is None
            and ours.exists()
            and certificate.parent.resolve() == ours.parent.resolve()
        ):
            authority = ours
        plan = Plan(folder, config, task, host, port, admin_port, url, certificate, key, authority)
        with serving(plan) as running:
            signal.signal(signal.SIGTERM, lambda *_: running.stop())
            addresses = {"url": running.url, "admin": running.admin_url, "folder": str(folder)}
            show(addresses, format_, f"Serving devices at {running.url}; Ctrl-C stops.")
            if not certificate and host not in ("127.0.0.1", "::1", "localhost"):
                typer.echo("Without TLS: only for trials, or behind a proxy that has it.", err=True)
            running.run()
    except ImportError as error:
        raise MissingExtraError(f"{error.name} is missing: pip install 'edgefleet[coordinator]'") from error


@coordinator.command()
def certificates(
    hosts: Annotated[list[str], typer.Argument(help="Names and addresses by which devices reach the coordinator.")],
    folder: Folder = HERE,
    format_: Formatted = Format.TEXT,
) -> None:
    """Make a local authority and a server certificate for trials; again, and only the certificate is new."""
    from coordinator.certificates import AUTHORITY, FOLDER, SERVER, SERVER_KEY, fingerprint, make

    place = folder / FOLDER
    try:
        make(place, hosts, now=datetime.now(UTC))
    except OSError as error:
        raise UsageError(f"{place} cannot be written: {error.strerror}") from error
    print_ = fingerprint((place / AUTHORITY).read_bytes())
    made = {"certificate": str(place / SERVER), "key": str(place / SERVER_KEY), "authority": print_}
    hint = f"edgefleet coordinator serve {folder} --certificate {place / SERVER} --key {place / SERVER_KEY}"
    show(made, format_, f"Made {place / SERVER} for {', '.join(hosts)}; authority {print_[:16]}…\nServe with: {hint}")


@coordinator.command()
def invite(
    name: Annotated[str, typer.Argument(help="What the node is called in the fleet.")],
    folder: Folder = HERE,
    format_: Formatted = Format.TEXT,
) -> None:
    """Print a one-time invitation for 'edgefleet node enrol', good for 24 hours. It is a secret."""
    from coordinator.admin_client import AdminClient

    made = AdminClient(folder).post("invitations", {"name": name})
    show(made, format_, made["invitation"])


@coordinator.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The node.")], folder: Folder = HERE, format_: Formatted = Format.TEXT
) -> None:
    """Take a node out of the fleet and of the open round, at once and for good."""
    from coordinator.admin_client import AdminClient

    show(AdminClient(folder).post("revocations", {"name": name}), format_, f"{name} is out of the fleet")


@coordinator.command()
def nodes(folder: Folder = HERE, format_: Formatted = Format.TEXT) -> None:
    """List the nodes that were ever enrolled."""
    from coordinator.admin_client import AdminClient

    rows = AdminClient(folder).get("nodes")
    show_rows(
        rows, ("name", "state", "answered"), format_, empty="no node is enrolled: edgefleet coordinator invite NAME"
    )


@coordinator.command()
def status(folder: Folder = HERE, format_: Formatted = Format.TEXT) -> None:
    """Show the fleet at a glance."""
    from coordinator.admin_client import AdminClient

    show_fields(AdminClient(folder).get("status"), format_)
