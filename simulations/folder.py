"""The folder of a run, as a flag names it."""

from pathlib import Path

from fleet.errors import UsageError


def folder_named(text: str) -> Path:
    """The folder of that name; an empty name would be the folder that we are in.

    Raises:
        UsageError: The name is empty.
    """
    if not text:
        raise UsageError("the folder's name is empty; choose one")
    return Path(text)
