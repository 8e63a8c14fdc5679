"""The audit of what is pinned: a verdict where the database answers, and never one where it does not."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

AUDIT = Path(__file__).resolve().parents[2] / "infra" / "audit.py"


def _audit() -> object:
    spec = importlib.util.spec_from_file_location("audit", AUDIT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CLEAN = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "X-1", "fix_versions": ["3"]}, {"id": "X-2", "fix_versions": []}]}
SKIPPED = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("dependencies", "code", "last"),
    [
        ([CLEAN, CLEAN], 0, "2 packages looked up, 0 with known vulnerabilities"),
        ([CLEAN, BAD], 1, "2 packages looked up, 1 with known vulnerabilities"),
        ([CLEAN, SKIPPED], 3, "1 packages looked up, 0 with known vulnerabilities"),
        ([BAD, SKIPPED], 1, "1 packages looked up, 1 with known vulnerabilities"),
        ([SKIPPED], 3, "0 packages looked up: the database cannot be reached from here"),
        ([], 3, "0 packages looked up: the database cannot be reached from here"),
    ],
)
def test_a_package_that_was_not_looked_up_is_no_clean_one(dependencies: list[object], code: int, last: str) -> None:
    found, lines = _audit().verdict({"dependencies": dependencies})  # type: ignore[attr-defined]
    assert (found, lines[-1]) == (code, last)
    assert BAD not in dependencies or "b 2: X-1, X-2; mended in 3" in lines


@pytest.mark.slow
def test_no_pinned_package_has_a_known_vulnerability() -> None:
    if importlib.util.find_spec("pip_audit") is None:
        pytest.skip("pip-audit is not installed: `make audit` does it")
    done = subprocess.run([sys.executable, AUDIT], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip(f"not audited: {done.stdout.splitlines()[-1]}")
    assert done.returncode == 0, done.stdout
