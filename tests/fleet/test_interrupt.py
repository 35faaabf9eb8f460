"""Ctrl-C at any moment is exit code 130."""

import subprocess
import sys
from pathlib import Path

import pytest

WITHIN = "import signal; signal.raise_signal(signal.SIGINT)"


@pytest.mark.parametrize("work", [WITHIN, f"exec({WITHIN!r})"], ids=["by itself", "within an exec"])
def test_an_interrupt_is_one_line_and_exit_code_130(tmp_path: Path, work: str) -> None:
    program = f"from fleet.__main__ import end_with\ndef run(_):\n    {work}\n    return 0\nend_with(run)"
    (tmp_path / "program.py").write_text(program)
    shown = subprocess.run([sys.executable, "-m", "program"], cwd=tmp_path, capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (130, "edgefleet: interrupted\n")
