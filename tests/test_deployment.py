"""What docker-compose.yml and the image definitions promise."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
STAYING = ("coordinator", "node")  # the others end
IMAGES = ("coordinator", "node")
BASE = "python:3.11-slim"
SECRET = re.compile(r"(?i)secret|token|password|passwd|credential|private|api_?key|edgefleet1\.")

every_service = pytest.mark.parametrize("name", SERVICES)
every_staying_service = pytest.mark.parametrize("name", STAYING)
every_image = pytest.mark.parametrize("image", IMAGES)


def resolved(value: Any, **environment: str) -> str:
    """What compose makes of ``${NAME:-default}``."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: environment.get(found[1]) or found[2], str(value))


def command(name: str) -> list[str]:
    service = SERVICES[name]
    return [resolved(part) for part in (*service.get("entrypoint", ["edgefleet"]), *service["command"])]


def mounts(name: str) -> dict[str, tuple[str, bool]]:
    """Where in the container: what of, and whether it can be written."""
    parts = [resolved(volume).split(":") for volume in SERVICES[name].get("volumes", [])]
    return {place: (source, "ro" not in options) for source, place, *options in parts}


def stages(image: str) -> list[list[tuple[str, str]]]:
    """The instructions of a Dockerfile, a list a stage."""
    text = (ROOT / image / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found: list[list[tuple[str, str]]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            found.append([])
        found[-1].append((instruction, " ".join(rest.split())))
    return found


def text(stage: list[tuple[str, str]]) -> str:
    return "\n".join(f"{instruction} {rest}" for instruction, rest in stage)


def test_the_file_is_a_compose_file() -> None:
    subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"],
        check=True,
        cwd=ROOT,
        capture_output=True,
    )


@every_service
@pytest.mark.parametrize(
    ("promise", "holds"),
    [
        ("nobody is root", lambda s: s["user"].split(":")[0].isdigit() and int(s["user"].split(":")[0]) >= 1000),
        ("the root is read-only", lambda s: s["read_only"] is True),
        (
            "scratch space is bounded",
            lambda s: all("size=" in t for t in s["tmpfs"]),
        ),
        ("there is no capability", lambda s: s["cap_drop"] == ["ALL"] and "cap_add" not in s),
        ("no privilege can be won", lambda s: "no-new-privileges:true" in s["security_opt"] and "privileged" not in s),
        ("zombies are reaped", lambda s: s["init"] is True),
        ("processes are bounded", lambda s: 0 < s["pids_limit"] <= 1024),
        ("memory is bounded", lambda s: re.fullmatch(r"\d+[mg]", s["mem_limit"])),
        ("logs are bounded", lambda s: {"max-size", "max-file"} <= s["logging"]["options"].keys()),
        ("nothing of the host is shared", lambda s: not {"pid", "ipc", "devices", "userns_mode"} & s.keys()),
        ("the network is not the host's", lambda s: s.get("network_mode") in {None, "none", "service:coordinator"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_service_is_hardened(name: str, promise: str, holds: Callable[[dict[str, Any]], Any]) -> None:
    assert holds(SERVICES[name]), f"{name}: {promise}"


def test_only_the_public_listener_is_published_and_only_to_this_machine_unless_asked() -> None:
    published = {name: [resolved(port) for port in service.get("ports", [])] for name, service in SERVICES.items()}
    assert {name: ports for name, ports in published.items() if ports} == {"coordinator": ["127.0.0.1:8443:8443"]}
    assert "--port=8443" in command("coordinator")
    assert not any("admin" in part for part in command("coordinator")), "the admin listener stays on loopback"


def test_nodes_reach_the_coordinator_and_nothing_else() -> None:
    assert SERVICES["node"]["networks"] == ["fleet"]
    assert COMPOSE["networks"]["fleet"]["internal"] is True
    assert "fleet" in SERVICES["coordinator"]["networks"]
    assert SERVICES["invitations"]["network_mode"] == "service:coordinator", "where the admin listener is"
    assert SERVICES["certificates"]["network_mode"] == "none"


def test_the_coordinator_is_found_under_the_name_that_invitations_and_its_certificate_bear() -> None:
    name = "${FLEET_HOST:-coordinator}"
    assert SERVICES["coordinator"]["networks"]["fleet"]["aliases"] == [name]
    assert f"--url=https://{name}:8443" in SERVICES["coordinator"]["command"]
    assert {name, "localhost"} <= set(SERVICES["certificates"]["command"]), "localhost is for the health check"


def test_the_local_api_of_a_node_is_its_own() -> None:
    assert "--listen=http://127.0.0.1:8090" in command("node")


@every_service
def test_no_secret_is_in_the_environment_or_on_a_command_line(name: str) -> None:
    service = SERVICES[name]
    assert "environment" not in service
    assert "env_file" not in service
    assert not SECRET.search(" ".join(command(name)))
    assert not SECRET.search(str(service.get("build", {}).get("args", {})))


def test_secrets_are_files_in_volumes_of_those_who_need_them() -> None:
    used = {name: {source for source, _ in mounts(name).values()} for name in SERVICES}
    holders = {volume: [name for name in SERVICES if volume in used[name]] for volume in COMPOSE["volumes"]}
    assert holders == {
        "coordinator": ["coordinator", "certificates", "invitations"],
        "nodes": ["node"],
        "invitations": ["invitations", "node"],
    }
    assert mounts("invitations")["/state"] == ("coordinator", False)
    assert "--key=/state/certificates/server.key" in command("coordinator")


@every_service
def test_what_can_be_written_is_a_named_volume(name: str) -> None:
    writable = {source for source, writable in mounts(name).values() if writable}
    assert writable <= COMPOSE["volumes"].keys()


@every_staying_service
def test_programs_that_stay_come_back_and_have_time_to_end(name: str) -> None:
    assert SERVICES[name]["restart"] == "unless-stopped"
    assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) >= 15


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("coordinator", "https://localhost:8443/api/v1/time"),
        ("node", "http://127.0.0.1:8090/v2/health/ready"),
    ],
)
def test_health_is_asked_of_the_program_itself_with_what_the_image_has(name: str, url: str) -> None:
    check = SERVICES[name]["healthcheck"]
    how, python, option, code = check["test"]
    assert (how, python, option) == ("CMD", "python", "-c")
    assert f'"{url}"' in code
    compile(code, name, "exec")
    assert {"interval", "timeout", "retries", "start_period"} <= check.keys()


def test_a_node_waits_for_nobody() -> None:
    assert "depends_on" not in SERVICES["node"], "nodes answer whether there is a coordinator or not"


def test_a_service_can_be_scaled() -> None:
    assert not {"container_name", "ports", "hostname"} & SERVICES["node"].keys()


@every_image
@pytest.mark.parametrize(
    ("promise", "holds"),
    [
        ("both stages start from one pinned image", lambda b, f: (b[0][1], f[0][1]) == (f"{BASE} AS build", BASE)),
        ("it is installed from the repository", lambda b, f: "pip wheel --no-deps --wheel-dir /wheels ." in text(b)),
        ("only packages are fetched", lambda b, f: not re.search(r"curl|wget|ADD |git |https?://", text(b) + text(f))),
        ("no build tool is left", lambda b, f: "pip uninstall --yes" in text(f) and "pip install" not in text(f)),
        ("what was installed comes along", lambda b, f: ("COPY", "--from=build /venv /venv") in f),
        ("nobody is root", lambda b, f: [rest for instruction, rest in f if instruction == "USER"] == ["10001:10001"]),
        ("Flower stays quiet", lambda b, f: "FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1" in text(f)),
        ("it runs our command", lambda b, f: ("ENTRYPOINT", '["edgefleet"]') in f),
        ("no secret is baked in", lambda b, f: not any(SECRET.search(r) for i, r in b + f if i in {"ARG", "ENV"})),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_image_is_small_and_hardened(image: str, promise: str, holds: Callable[[Any, Any], Any]) -> None:
    assert holds(*stages(image)), f"{image}: {promise}"


@every_image
def test_an_image_has_what_the_wheel_is_built_of_and_its_volumes_belong_to_its_user(image: str) -> None:
    build, final = stages(image)
    copied = {part for i, rest in build if i == "COPY" for part in rest.split()[:-1]}
    assert copied == {"pyproject.toml", "README.md", "LICENSE", "fleet", "coordinator", "node", "simulations"}
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    assert "*" in ignored, "whatever else lies about stays outside"
    made = next(rest for i, rest in final if i == "RUN")
    places = {place for name in SERVICES for place, (_, writable) in mounts(name).items() if writable}
    own = {"coordinator": {"/state", "/invitations"}, "node": {"/nodes", "/invitations"}}
    assert {place for place in places if place in made} == own[image]
    assert "--owner=edgefleet" in made
    assert "--uid 10001" in made


@every_service
def test_a_service_is_built_here_and_its_user_is_that_of_the_image(name: str) -> None:
    build = SERVICES[name]["build"]
    image = "node" if name == "node" else "coordinator"
    assert build["dockerfile"] == f"{image}/Dockerfile"
    assert build["context"] == "."
    assert ("USER", SERVICES[name]["user"]) in stages(image)[1]


@pytest.mark.parametrize("name", ["coordinator", "certificates"])
def test_a_service_runs_a_command_that_exists_with_options_that_exist(name: str) -> None:
    group, verb, *rest = command(name)[1:]
    shown = subprocess.run(
        [sys.executable, "-m", "fleet", group, verb, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert all(part.partition("=")[0] in shown.stdout for part in rest if part.startswith("--"))


@pytest.mark.parametrize("script", ["coordinator/invite-nodes.sh", "node/join-and-run.sh"])
def test_an_entrypoint_is_in_its_image_and_can_be_run(script: str) -> None:
    path = ROOT / script
    assert os.access(path, os.X_OK)
    assert ("COPY", f"{script} /usr/local/bin/") in stages(path.parent.name)[1]
    assert any(service.get("entrypoint") == [path.name] for service in SERVICES.values())


@pytest.mark.slow
def test_the_commands_of_the_services_make_a_fleet(tmp_path: Path) -> None:
    played = Played(tmp_path)
    played.run("certificates").check_returncode()
    with played.started("coordinator"):
        played.wait_until_healthy("coordinator")
        played.run("invitations").check_returncode()
        with played.started("node"):
            played.wait_until_healthy("node")
    assert {path.name for path in (tmp_path / "nodes").iterdir()} == {"node-1"}
    assert {path.name for path in (tmp_path / "invitations").iterdir()} == {"node-2"}


class Played:
    """The services without their containers: the same commands over folders and ports of a test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for volume in ("state", "nodes", "invitations", "bin"):
            (folder / volume).mkdir()
        shutil.copytree(ROOT / "simulations" / "templates" / "digits", folder / "task")
        (folder / "bin" / "edgefleet").write_text(f'#!/bin/sh\nexec {sys.executable} -m fleet "$@"\n')
        (folder / "bin" / "edgefleet").chmod(0o755)
        scripts = (folder / "bin", ROOT / "coordinator", ROOT / "node")
        path = ":".join([*map(str, scripts), os.environ["PATH"]])
        self._environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
        self._ports = {"8443": str(free_port()), "8090": str(free_port())}

    def run(self, name: str) -> subprocess.CompletedProcess[bytes]:
        """A service that ends."""
        return subprocess.run(self._command(name), cwd=self._folder, env=self._environment, check=False)

    @contextmanager
    def started(self, name: str) -> Iterator[None]:
        """A service that stays, until its ``stop_grace_period`` is over."""
        process = subprocess.Popen(self._command(name), cwd=self._folder, env=self._environment, start_new_session=True)
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(int(SERVICES[name]["stop_grace_period"].removesuffix("s")))
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def wait_until_healthy(self, name: str) -> None:
        """Ask as its ``healthcheck`` does, as long as its ``start_period``."""
        check = SERVICES[name]["healthcheck"]
        code = self._here(check["test"][3])
        deadline = time.monotonic() + int(check["start_period"].removesuffix("s"))
        while subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, f"{name} is not healthy"
            time.sleep(0.3)

    def _command(self, name: str) -> list[str]:
        service = {**SERVICES[name], "entrypoint": SERVICES[name].get("entrypoint", ["edgefleet"])}
        parts = [*service["entrypoint"], *service["command"]]
        return [self._here(resolved(part, FLEET_HOST="localhost", INVITATIONS="2")) for part in parts]

    def _here(self, text: str) -> str:
        for port, free in self._ports.items():
            text = text.replace(port, free)
        return re.sub(r"(?<![\w.:/])/(state|nodes|invitations|task)\b", rf"{self._folder}/\1", text)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number
