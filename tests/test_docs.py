"""The pages of ``docs/`` say what is so: their commands run, and their tables are those of the code."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import click
import jsonschema
import pytest
import typer

from fleet.privacy.gaussian import epsilon_of, mu_of
from simulations import spar
from simulations.result import Result

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}
INVARIANTS = [f"I{number}" for number in range(1, 13)]
END = "-- end of a command --"


def rows(text: str) -> list[list[str]]:
    """The rows of all tables, without heads and rulers, cell by cell."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    heads = {i - 1 for i, line in enumerate(lines) if set(line) <= set("| -")}
    body = [line for i, line in enumerate(lines) if i not in heads and i - 1 not in heads]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body]


def consoles(page: str) -> list[tuple[str, list[str]]]:
    """The commands of a page in order, each with the lines that should follow it."""
    steps: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append((line.removeprefix("$ "), []))
            else:
                steps[-1][1].append(line)
    return steps


def run(commands: list[str], folder: Path) -> list[list[str]]:
    """What each command printed, both streams, in one shell; ``edgefleet`` is this one."""
    (folder / "bin").mkdir()
    shim = folder / "bin" / "edgefleet"
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fleet "$@"\n')
    shim.chmod(0o755)
    (folder / "bin" / "python").symlink_to(sys.executable)
    places = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HOME": str(folder)}
    places["PYTHONPATH"] = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    script = "".join(f"{command}\nlast=$?; echo; echo '{END}'; (exit $last)\n" for command in commands)
    (folder / "work").mkdir()
    shown = subprocess.run(
        ["bash"],
        input=script,
        cwd=folder / "work",
        env={**os.environ, **places},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    return [[line for line in part.splitlines() if line] for part in shown.stdout.split(END)[:-1]]


def agrees(shown: list[str], expected: list[str]) -> bool:
    """Whether every expected line is shown, in order; ``...`` stands for any lines."""
    if "..." not in expected:
        return not expected or shown == expected
    at = expected.index("...")
    rest = expected[at + 1 :]
    return shown[:at] == expected[:at] and (not rest or shown[-len(rest) :] == rest)


@pytest.mark.slow
@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if "```console" in text])
def test_the_commands_of_a_page_do_what_it_shows(page: str, tmp_path: Path) -> None:
    steps = consoles(PAGES[page])
    outputs = run([command for command, _ in steps], tmp_path)
    assert len(outputs) == len(steps)
    for (command, expected), shown in zip(steps, outputs, strict=True):
        assert agrees(shown, expected), (command, shown)
        assert not any("Traceback" in line for line in shown), (command, shown)


def test_every_link_leads_to_a_file() -> None:
    pages = {**PAGES, "../README.md": (ROOT / "README.md").read_text(encoding="utf-8")}
    for name, text in pages.items():
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert ((DOCS / name).parent / target).exists(), (name, target)


def test_every_page_is_linked_from_the_readme_or_a_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8") + "".join(PAGES.values())
    for name in PAGES:
        assert f"{name})" in text, name


# how-it-works.md


def test_the_files_that_the_drawing_names_exist() -> None:
    for path in re.findall(r"`([a-z_]+/[\w/]+\.py)`", PAGES["how-it-works.md"]):
        assert (ROOT / path).is_file(), path


# promises.md


def slug(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", words.lower().replace("ε", "epsilon")).strip("_")


def functions(path: Path) -> dict[str, str]:
    """Tests of a file by name, each with its name and docstring as one slug."""
    found = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)]
    return {node.name: slug(f"{node.name} {ast.get_docstring(node) or ''}") for node in found}


PROMISES = [
    pytest.param(promise, *re.findall(r"`([^`]+)`", where), id=slug(promise))
    for promise, where in rows(PAGES["promises.md"])
]


@pytest.mark.parametrize(("promise", "file", "test"), PROMISES)
def test_a_promise_is_carried_by_a_test_that_says_so(promise: str, file: str, test: str) -> None:
    assert test.startswith("test_")
    assert slug(promise) in functions(ROOT / file)[test]


def test_every_invariant_has_its_promises_or_says_that_it_is_not_built() -> None:
    sections = re.split(r"^## ", PAGES["promises.md"], flags=re.MULTILINE)[1:]
    numbered = {section.split()[0]: section for section in sections if re.match(r"I\d", section)}
    assert list(numbered) == INVARIANTS
    for number, section in numbered.items():
        assert f"test_{number}_" in section or "Not built yet" in section, number


# privacy.md


def test_the_group_privacy_figures_are_computed() -> None:
    section = PAGES["privacy.md"].split("## What a group of units is worth")[1].split("\n## ")[0]
    table = rows(section)
    for _, units, *shown in table:
        expected = [epsilon_of(int(units) * mu_of(epsilon, 1e-5), 1e-5) for epsilon in (1.0, 3.0, 8.0)]
        assert shown == [f"{epsilon:.1f}" for epsilon in expected]
    train = [seen.train for seen in spar.recordings().values()]
    bouts = [int((windows.y == label).sum()) for windows in train for label in range(len(spar.CLASSES))]
    counts = {name: int(units) for name, units, *_ in table}
    assert counts["a bout"] == int(median(bouts))
    assert counts["a device"] == int(median(len(windows) for windows in train))


# your-own-task.md


def test_check_says_what_the_page_quotes() -> None:
    others = ("coordinator/requantizer.py", "simulations/agreement.py")
    places = [*(ROOT / "fleet").glob("*_check.py"), *(ROOT / other for other in others)]
    source = "".join(path.read_text(encoding="utf-8") for path in places)
    section = PAGES["your-own-task.md"].split("## What `check` says")[1].split("\n## ")[0]
    quoted = [re.findall(r"`([^`]+)`", message)[0] for message, _ in rows(section)]
    assert len(quoted) > 10
    for message in quoted:
        for piece in message.split("…"):
            assert piece.strip(" :,()") in source, message


# cli.md


def commands() -> dict[str, click.Command]:
    """Each command that this repository installs, by its words: ``simulate``, ``node run``."""
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["edgefleet.commands"]
    found: dict[str, click.Command] = {}
    for name, place in entries.items():
        module, _, attribute = place.partition(":")
        loaded = getattr(import_module(module), attribute)
        if isinstance(loaded, typer.Typer):
            group = typer.main.get_group(loaded)
            found |= {f"{name} {child}": command for child, command in group.commands.items()}
        else:
            app = typer.Typer()
            app.command(name)(loaded)
            found[name] = typer.main.get_command(app)
    return found


def written(default: Any) -> str:
    """A default as the page has it."""
    if isinstance(default, bool):
        return "on" if default else "off"
    return str(getattr(default, "value", default))


COMMANDS = commands()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_the_flags_that_its_page_lists(name: str) -> None:
    sections = re.split(rf"^## edgefleet {name}(?=[ \n])", PAGES["cli.md"], flags=re.MULTILINE)
    assert len(sections) == 2, f"docs/cli.md has no section on edgefleet {name}"
    table = rows(sections[1].split("\n## ")[0])
    listed = {flag for cell, *_ in table for flag in re.findall(r"`(--?[a-z-]+)`", cell)}
    options = [param for param in COMMANDS[name].params if isinstance(param, click.Option)]
    known = {opt for param in options for opt in (*param.opts, *param.secondary_opts)}
    assert listed == known - {"--help", "-h", "--install-completion", "--show-completion"}
    defaults = {cell.split("`")[1]: default.strip("`") for cell, default, _ in table}
    for param in options:
        if param.opts[0] in defaults and param.default is not None:
            assert written(param.default) == defaults[param.opts[0]]


@pytest.mark.parametrize("name", ["init", "check", "simulate"])
def test_a_laptop_command_speaks_json(name: str) -> None:
    assert any("--format" in param.opts for param in COMMANDS[name].params)


def test_the_exit_codes_of_the_page_are_those_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    codes = [row for row in rows(PAGES["cli.md"]) if row[0].isdecimal()]
    assert codes == [row for row in rows(readme) if row[0].isdecimal()]


# json.md


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / "schemas" / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(found)
    return found


def test_the_schema_of_a_result_has_the_fields_of_a_result() -> None:
    described = schema("simulate")
    assert described["required"] == [field.name for field in fields(Result)]
    assert described["properties"].keys() == {*described["required"], "story"}  # a story adds what it told
    assert all("description" in part for part in described["properties"].values())


@pytest.mark.parametrize("path", sorted((DOCS / "schemas").iterdir()), ids=lambda path: path.name)
def test_a_client_that_validates_lives_through_a_field_that_is_added(path: Path) -> None:
    parts = [json.loads(path.read_text())]
    while parts:
        part = parts.pop()
        assert part.get("additionalProperties") is not False
        parts += [each for each in [*part.values(), *part.get("properties", {}).values()] if isinstance(each, dict)]


def closed(schema: Any) -> Any:
    """The schema for this version alone: an object has no field that is not described."""
    if not isinstance(schema, dict):
        return schema
    fields = {"additionalProperties": False} if "properties" in schema else {}
    return fields | {key: closed(value) for key, value in schema.items()}


@pytest.mark.slow
def test_what_the_commands_print_is_what_the_schemas_say(tmp_path: Path) -> None:
    steps = [
        ("init", "edgefleet init mytask --format json && cd mytask"),
        ("check", "edgefleet check --format json"),
        ("check", "EDGEFLEET_PRIVACY__EPSILON=inf edgefleet check --format json"),
        ("simulate", "edgefleet simulate --nodes 4 --rounds 4 --format json"),
        ("simulate", "edgefleet simulate --nodes 4 --rounds 4 --epsilon inf --out certain --format json"),
    ]
    outputs = run([command for _, command in steps], tmp_path)
    for (name, command), shown in zip(steps, outputs, strict=True):
        assert len(shown) == 1, (command, shown)
        jsonschema.validate(json.loads(shown[0]), closed(schema(name)))
    results = [json.loads(shown[0]) for shown in outputs[3:]]
    assert [result["epsilon_max"] is None for result in results] == [False, True]
    assert len(json.loads(outputs[2][0])) == 1
