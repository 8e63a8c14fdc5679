"""Settings as plain values, for logs, attributes and parameters."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any


def plain(settings: Any) -> dict[str, Any]:
    """A settings object as nested JSON values."""
    values = _plain(asdict(settings))
    assert isinstance(values, dict)
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
