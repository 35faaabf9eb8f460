"""Every code that a coordinator can refuse with is documented, with its status."""

import re
from pathlib import Path

from coordinator.api.problems import STATUS

ROOT = Path(__file__).parents[2]


def documented() -> dict[str, int]:
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d+) \|", (ROOT / "docs" / "refusals.md").read_text(), re.M)
    return {code: int(status) for code, status in rows}


def test_the_table_says_what_the_code_does() -> None:
    assert documented() == STATUS


def test_every_refusal_in_the_coordinator_has_a_documented_code() -> None:
    text = (ROOT / "docs" / "refusals.md").read_text()
    sources = [*(ROOT / "coordinator").rglob("*.py"), ROOT / "fleet" / "messages.py"]
    pattern = re.compile(r'(?:RefusedError|refused|_require)\(\s*(?:[^"()]*(?:\([^()]*\)[^"()]*)*,\s*)?"([a-z-]+)"')
    raised = {code for source in sources for code in pattern.findall(source.read_text())}
    assert len(raised) > 25
    assert {code for code in raised if f"`{code}`" not in text} == set()
