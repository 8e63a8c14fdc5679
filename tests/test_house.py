"""What the command line promises before any work begins."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"tensorflow", "keras", "ray", "mlflow", "matplotlib", "dask"}


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["train", "--schedule.stps", "3"]], ids=" ".join)
def test_help_and_mistyped_options_answer_without_importing_an_engine(words: list[str]) -> None:
    # Importing TensorFlow alone takes longer than anyone waits for a list of options.
    command = [sys.executable, "-X", "importtime", "-m", "tessera.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == (2 if "--schedule.stps" in words else 0), done.stderr
    imported = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "tessera.cli.main" in imported
    assert not imported & HEAVY
