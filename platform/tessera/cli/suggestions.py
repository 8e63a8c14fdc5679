"""The nearest known key for one that a parser refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

_REFUSED = (
    r"unrecognized arguments: --([\w.]+)",
    r"does not accept option '([\w.]+)'",
    r"Option '([\w.]+)' is not accepted",
)


def with_suggestion(message: str, settings: Sequence[type]) -> str:
    """Add the nearest known key to a message about an unknown one; other messages stay as they are.

    >>> from tessera.settings.train import TrainSettings
    >>> with_suggestion("unrecognized arguments: --optimiser.learning_rte 3", [TrainSettings])
    'unrecognized arguments: --optimiser.learning_rte 3. Did you mean --optimiser.learning_rate?'
    """
    refused = next((found[1] for pattern in _REFUSED if (found := re.search(pattern, message))), None)
    if refused is None:
        return message
    known = sorted({key for one in settings for key in _keys(one)})
    near = get_close_matches(refused, known, n=1) or get_close_matches(
        refused, [k.rsplit(".", 1)[-1] for k in known], n=1
    )
    if not near:
        return f"{message}. See --help for the keys there are."
    return f"{message}. Did you mean {'--' if '--' in message else ''}{near[0]}?"


def _keys(settings: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings, those of list items included."""
    hints = get_type_hints(settings)
    for field in fields(settings):
        yield f"{prefix}{field.name}"
        for inner in (hints[field.name], *get_args(hints[field.name])):
            if _is_settings(inner):
                yield from _keys(inner, f"{prefix}{field.name}.")


def _is_settings(kind: Any) -> bool:
    return isinstance(kind, type) and is_dataclass(kind)
