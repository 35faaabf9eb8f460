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

# What the page is drawn with, by name of its colours.
_COLOURS = """
const page = this.contentDocument, drawn = getComputedStyle(page.documentElement), body = getComputedStyle(page.body);
const names = 'page card ink soft a b c d e r0 r1 r2 r3 r4 r5'.split(' ');
const colours = names.map(name => name + '=' + drawn.getPropertyValue('--' + name).trim());
document.title = [...colours, 'body=' + body.backgroundColor].join(';');
"""
SCHEMES = {"dark": 0, "light": 1}  # as Blink numbers them


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


def coloured(folder: Path, name: str, scheme: str) -> dict[str, str]:
    """The colours of a page for a person who prefers ``scheme``."""
    frame = f'<title></title><iframe src="{name}" onload="{_COLOURS}"></iframe>'
    (folder / "frame.html").write_text(frame, encoding="utf-8")
    wish = f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}"
    shown, _ = browsed(folder, "frame.html", "--allow-file-access-from-files", wish)
    title = re.search(r"<title>(.+?)</title>", shown)
    assert title, "the page was not looked at"
    return dict(pair.split("=") for pair in title[1].split(";"))


def contrast(one: str, other: str) -> float:
    """Of two colours such as ``#1c2024`` (WCAG 2.2, "contrast ratio"): 1 to 21."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def laid_out(folder: Path, name: str, width: int) -> Layout:
    """What a browser makes of a page in a window of ``width`` pixels."""
    frame = f'<title></title><iframe width="{width}" height="30000" frameborder="0" src="{name}" onload="{_MEASURE}">'
    (folder / "frame.html").write_text(f"{frame}</iframe>", encoding="utf-8")
    shown, _ = browsed(folder, "frame.html", "--allow-file-access-from-files")
    title = re.search(r"<title>(\d+) (\d+): (.*?)</title>", shown)
    assert title, "the page was not measured"
    return Layout(int(title[1]), int(title[2]), tuple(filter(None, title[3].split("; "))))
