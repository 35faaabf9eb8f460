"""A real browser, for what only it can tell of a page."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
COLUMNS = {390: 1, 1280: 2}  # by pixels of width: a telephone and a desk

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

# How wide the page is, how many figures stand side by side, and pairs of ticks of one chart that overlap.
_MEASURE = """
const page = this.contentDocument, pairs = [];
for (const plot of page.querySelectorAll('svg.plot')) {
  const ticks = [...plot.querySelectorAll('.tick')].map(t => [t.textContent, t.getBoundingClientRect()]);
  ticks.forEach(([one, a], i) => ticks.slice(i + 1).forEach(([two, b]) => {
    if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom) pairs.push(one + ' on ' + two);
  }));
}
const columns = new Set([...page.querySelector('.pair').children].map(figure => figure.offsetLeft)).size;
document.title = page.documentElement.scrollWidth + ' ' + columns + ': ' + pairs.join('; ');
"""


def browsed(folder: Path, name: str, *flags: str) -> tuple[str, list[str]]:
    """What a real browser makes of a page, and what the page asked for beside itself."""
    assert CHROMIUM is not None
    log = folder / "net.json"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    command += [
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder}/browser",
    ]
    command += [f"--log-net-log={log}", "--dump-dom", *flags, (folder / name).as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    noted: dict[str, Any] = json.loads(log.read_text())
    asked = [event.get("params", {}) for event in noted["events"]]
    # What the browser wants for itself has no page as its origin.
    return shown.stdout, [
        a["url"] for a in asked if "url" in a and a.get("initiator", "not an origin") != "not an origin"
    ]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a page is laid out: its width, figures side by side, and ticks of a chart that lie on each other."""

    width: int
    columns: int
    collisions: tuple[str, ...] = ()


def laid_out(folder: Path, name: str, width: int) -> Layout:
    """What a browser makes of a page in a window of ``width`` pixels."""
    frame = f'<title></title><iframe width="{width}" height="30000" frameborder="0" src="{name}" onload="{_MEASURE}">'
    (folder / "frame.html").write_text(f"{frame}</iframe>", encoding="utf-8")
    shown, _ = browsed(folder, "frame.html", "--allow-file-access-from-files")
    title = re.search(r"<title>(\d+) (\d+): (.*?)</title>", shown)
    assert title, "the page was not measured"
    return Layout(int(title[1]), int(title[2]), tuple(filter(None, title[3].split("; "))))
