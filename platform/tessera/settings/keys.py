"""Names and types of settings: what keys there are, what each wants, and settings with some of them changed.

Settings are nested dataclasses; a dotted key such as `network.filters` names one value in them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Settings = TypeVar("Settings")

_SCALARS = {
    int: "a whole number, such as 4",
    float: "a number, such as 0.5",
    bool: "true or false",
    str: 'text (a number as text is "7")',
}
_TUPLES: dict[tuple[Any, ...], str] = {
    (int, int, int): "3 whole numbers, such as [16, 256, 256]",
    (float, float, float): "3 numbers, such as [50, 4, 4]",
    (int, int): "2 whole numbers, such as [3, 3]",
}


def nearest(refused: str, known: Collection[str], dashes: str = "") -> str:
    """A question that names the known key nearest to one that was refused.

    >>> nearest("optimizer.learning_rte", ["seed", "optimiser.learning_rate"])
    'Did you mean optimiser.learning_rate?'
    """
    last = refused.rsplit(".", 1)[-1]
    by_last = {name.rsplit(".", 1)[-1]: name for name in reversed(list(known))}
    near = get_close_matches(refused, known, n=1) or [by_last[k] for k in get_close_matches(last, by_last, n=1)]
    return f"Did you mean {dashes}{near[0]}?" if near else "See --help for those there are."


def expectation(hint: Any) -> str:
    """What a setting of this type wants.

    >>> expectation(tuple[int, int, int] | None), expectation(Literal["adam", "sgd"])
    ('3 whole numbers, such as [16, 256, 256], or null', 'one of adam, sgd')
    """
    kinds = get_args(hint)
    if NoneType in kinds:
        return f"{' or '.join(expectation(kind) for kind in kinds if kind is not NoneType)}, or null"
    if kinds == (int, str):
        return "a whole number, such as 4, or a range, such as 2-8"
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, kinds))}"
    if get_origin(hint) is tuple:
        return _TUPLES[kinds]
    if get_origin(hint) is dict:
        return "lines of KEY: VALUE"
    if get_origin(hint) is list:
        return f"a list, each item with {', '.join(field.name for field in fields(kinds[0]))}"
    if is_settings(hint):
        return f"a group of {', '.join(field.name for field in fields(hint))}"
    return _SCALARS[hint]


def hints_of(settings: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of all settings with their types, those of list items included."""
    hints = get_type_hints(settings)
    for field in fields(settings):
        hint = hints[field.name]
        yield f"{prefix}{field.name}", hint
        for inner in (hint, *get_args(hint)):
            if is_settings(inner):
                yield from hints_of(inner, f"{prefix}{field.name}.")


def is_settings(kind: Any) -> bool:
    """Whether a type is a group of settings."""
    return isinstance(kind, type) and is_dataclass(kind)


def accepts(hint: Any, value: Any) -> bool:
    """Whether a value is of a setting's type; a list passes for a tuple, as files have no other.

    >>> accepts(int, 8), accepts(int, True), accepts(float, 1), accepts(Literal["adam", "sgd"], "adam")
    (True, False, True, True)
    """
    kinds = get_args(hint)
    if get_origin(hint) is Literal:
        return value in kinds and type(value) in {type(kind) for kind in kinds}
    if get_origin(hint) is tuple:
        return isinstance(value, list | tuple) and len(value) == len(kinds) and all(map(accepts, kinds, value))
    if kinds:
        return any(accepts(kind, value) for kind in kinds)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint


def changed(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Settings with the values of dotted keys replaced, all at once: each group checks itself with all of them.

    Raises:
      ValueError: the settings refuse the values.
    """
    own = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if "." not in key}
    groups = dict.fromkeys(key.split(".", 1)[0] for key in values if "." in key)
    for group in groups:
        inner = {key.removeprefix(f"{group}."): value for key, value in values.items() if key.startswith(f"{group}.")}
        own[group] = changed(getattr(settings, group), inner)
    return replace(settings, **own)  # type: ignore[type-var]
