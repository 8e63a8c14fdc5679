"""What a figure was measured on, and of what: without both it cannot be compared with another."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("tensorflow", "keras", "ray", "numpy", "opencv-python-headless", "scipy")


def machine(packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """Cores, memory, processor, versions, and how busy the machine was with other work."""
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "processor": _processor(),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def commit() -> str:
    """The checkout's commit, with `+` where files differ from it or are new; `unknown` outside a checkout."""
    hashed, changed = _git("rev-parse", "--short", "HEAD"), _git("status", "--porcelain")
    # A benchmark rewrites its own results, which are no part of what it measures.
    edits = [line for line in changed.splitlines() if "tests/benchmarks/results/" not in line]
    return (hashed.strip() or "unknown") + ("+" if edits else "")


def digest(config: Path) -> str:
    """SHA-256 of a config file."""
    return hashlib.sha256(config.read_bytes()).hexdigest()


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
