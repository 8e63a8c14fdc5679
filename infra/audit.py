"""Look up every pinned package among the known vulnerabilities: `make audit`.

Exit codes: 0 all were looked up and none is known; 1 some are, listed; 3 they could not be looked up: no verdict.
pip-audit itself ends with 0 where it reached no database.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).with_name("constraints.txt")
CLEAN, VULNERABLE, UNKNOWN = 0, 1, 3


def report_of(constraints: Path) -> Mapping[str, Any]:
    """pip-audit's report; an empty one where it could not make any."""
    # What is pinned is what is looked up: nothing is resolved or installed for it.
    options = ["--format", "json", "--progress-spinner", "off", "--disable-pip", "--no-deps", "--timeout", "20"]
    command = [sys.executable, "-m", "pip_audit", *options, "--requirement", str(constraints)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        report: Mapping[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        print(done.stderr.strip()[-1000:], file=sys.stderr)
        return {"dependencies": []}
    return report


def verdict(report: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Exit code and what to print.

    >>> verdict({"dependencies": [{"name": "a", "version": "1", "vulns": []}]})
    (0, ['1 packages looked up, 0 with known vulnerabilities'])
    >>> verdict({"dependencies": [{"name": "a", "skip_reason": "not found"}]})
    (3, ['not audited: a (not found)', '0 packages looked up: the database cannot be reached from here'])
    """
    packages: Sequence[Mapping[str, Any]] = report["dependencies"]
    skipped = [one for one in packages if "skip_reason" in one]
    looked_up = len(packages) - len(skipped)
    lines = [f"not audited: {one['name']} ({one['skip_reason']})" for one in skipped]
    if not looked_up:
        return UNKNOWN, [*lines[:5], "0 packages looked up: the database cannot be reached from here"]
    found = [one for one in packages if one.get("vulns")]
    for one in found:
        mended = {version for bug in one["vulns"] for version in bug.get("fix_versions", [])}
        names = ", ".join(bug["id"] for bug in one["vulns"])
        lines.append(
            f"{one['name']} {one['version']}: {names}; mended in {', '.join(sorted(mended)) or 'no version yet'}"
        )
    lines.append(f"{looked_up} packages looked up, {len(found)} with known vulnerabilities")
    return (VULNERABLE if found else UNKNOWN if skipped else CLEAN), lines


if __name__ == "__main__":
    code, told = verdict(report_of(Path(sys.argv[1]) if len(sys.argv) > 1 else CONSTRAINTS))
    print("\n".join(told))
    sys.exit(code)
