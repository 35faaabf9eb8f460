"""Whether all that a simulation will need is installed, asked before anything runs."""

from importlib.util import find_spec

from fleet.errors import MissingExtraError

_PACKAGES = (
    *("fastapi", "flwr", "jinja2", "markupsafe", "onnx", "onnxruntime", "onnxscript", "opacus", "seglearn"),
    *("sklearn", "sqlalchemy", "torch"),
)


def check_installed() -> None:
    """Refuse to begin what could not end.

    Raises:
        MissingExtraError: A package of the extra is not installed; names the first.
    """
    for name in _PACKAGES:
        if find_spec(name) is None:
            raise MissingExtraError(f"{name} is missing: pip install 'edgefleet[simulate]'")
