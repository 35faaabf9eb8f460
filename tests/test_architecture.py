"""The house stands as drawn: who imports whom, which file speaks which framework, what ships."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("fleet", "coordinator", "node", "simulations")

# Which files may import which framework; a folder stands for all in it.
ALLOWED = {
    "flwr": {
        "coordinator/server_app.py",
        "coordinator/strategy.py",
        "coordinator/flower_app.py",
        "coordinator/waiting_grid.py",
        "node/client_app.py",
        "node/link.py",
        "simulations/grid.py",
        "simulations/ray_fleet.py",
        "fleet/flwr_compat.py",
        "coordinator/superlink.py",
    },
    "fastapi": {"coordinator/api"},
    "starlette": {"coordinator/api"},
    "pydantic": {"coordinator/api"},
    "uvicorn": {"coordinator/api/listener.py"},
    "joserfc": {"coordinator/tokens.py"},
    "torch": {
        "node/learner.py",
        "node/head.py",
        "node/personal.py",
        "fleet/task.py",
        "fleet/model_check.py",
        "fleet/privacy/per_example.py",
        "fleet/privacy/neighbours.py",
        "coordinator/exporter.py",
        "coordinator/warm_start.py",
        "simulations",
    },
    "opacus": {"fleet/privacy/per_example.py"},
    "onnxruntime": {"fleet/artifact.py", "coordinator/requantizer.py"},
    "onnx": {"coordinator/requantizer.py", "coordinator/exporter.py", "coordinator/ranges.py", "coordinator/golden.py"},
    "sqlalchemy": {
        "coordinator/tables.py",
        "coordinator/registry.py",
        "coordinator/roster.py",
        "coordinator/invitations.py",
        "coordinator/rounds.py",
        "coordinator/releases.py",
    },
    "tuf": {"fleet/trust", "node/installer.py", "node/fetcher.py"},
    "securesystemslib": {"fleet/trust", "node/installer.py"},
    "sklearn": {"simulations/templates"},
    "pickle": set(),
}
FLWR_PUBLIC = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"}


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("framework", ALLOWED)
def test_a_framework_stays_at_its_doors(framework: str) -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for path in sources()
        if any(name.split(".")[0] == framework for name in imports(path))
    }
    strangers = {
        user for user in users if not any(user == door or user.startswith(f"{door}/") for door in ALLOWED[framework])
    }
    assert not strangers


def test_what_is_not_public_in_flower_is_in_one_file_for_both_sides_and_one_for_the_server() -> None:
    """The server's has its own, for it weighs what no node should carry."""
    private = {
        path.relative_to(ROOT).as_posix()
        for path in sources()
        for name in imports(path)
        if name.split(".")[0] == "flwr" and name not in FLWR_PUBLIC
    }
    assert private == {"fleet/flwr_compat.py", "coordinator/superlink.py"}


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("fleet", {"coordinator", "node", "simulations"}),
        ("node", {"coordinator", "simulations"}),
        ("coordinator", {"node", "simulations"}),
    ],
)
def test_imports_point_one_way(package: str, forbidden: set[str]) -> None:
    for path in (ROOT / package).rglob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & forbidden, path


def test_files_that_must_survive_a_power_cut_are_written_in_one_place() -> None:
    writing = {"write_bytes", "write_text", "replace", "rename", "fsync"}
    for path in sources():
        if path.name == "durable.py" or "templates" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in writing - {"replace"}:
                pytest.fail(f"{path}:{node.lineno} writes by {node.attr}")


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import fleet.cli", {"torch", "flwr", "onnxruntime", "onnx", "sqlalchemy", "opacus"}),
        ("import node.predictor, node.serving, node.installer", {"torch", "flwr", "onnx", "sqlalchemy", "opacus"}),
        ("import node.agent", {"torch", "flwr", "onnx", "sqlalchemy", "opacus", "tuf"}),
        ("import node.fetcher", {"torch", "flwr", "onnx", "sqlalchemy", "opacus", "httpx"}),
        ("import node.link, node.client_app", {"torch", "onnx", "sqlalchemy", "opacus", "fastapi", "uvicorn"}),
        (
            "import coordinator.coordinator_command, coordinator.round_command, coordinator.release_command",
            {
                "torch",
                "flwr",
                "onnxruntime",
                "onnx",
                "sqlalchemy",
                "opacus",
                "fastapi",
                "uvicorn",
                "numpy",
                "rich.table",
            },
        ),
        ("import coordinator.admin_client", {"torch", "flwr", "sqlalchemy", "fastapi", "uvicorn", "numpy"}),
        (
            "import node.desk, node.local_api, node.http_server",
            {"torch", "flwr", "onnx", "cryptography", "email", "tuf"},
        ),
        (
            "import node.running, node.resident",  # a node that only answers
            {
                *("torch", "flwr", "onnx", "sqlalchemy", "opacus", "tuf", "cryptography", "urllib3", "typer", "click"),
                *("rich", "importlib.metadata", "email", "ssl", "subprocess", "shutil", "decimal", "tomllib"),
            },
        ),
        ("import simulations.simulate_command", {"torch", "flwr", "onnxruntime", "onnx", "sqlalchemy", "opacus"}),
    ],
)
def test_an_import_stays_lean(statement: str, absent: set[str]) -> None:
    code = f"{statement}; import sys; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not set(shown.stdout.split()) & absent


@pytest.mark.slow
def test_the_wheel_holds_the_packages_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == set(PACKAGES)
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert {"simulations/templates/digits/task.py", "coordinator/fab/pyproject.toml"} <= set(names)
