"""Workflows track their runs: give each test's home a database that is already there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def database(home: Path, empty_database: Path) -> Path:
    return Path(shutil.copy(empty_database, home / "mlflow.db"))
