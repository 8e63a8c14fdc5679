"""What a parser refused, said again in the words of settings: the key, what it was given, and what would work.

The parser speaks of Python types, unions and class paths; its message is read here and only here. What is not
recognised stays as it came.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

_UNKNOWN_OPTION = re.compile(r"unrecognized arguments: --([\w.+]+)")
_UNKNOWN_WORD = re.compile(r"unrecognized arguments: (\S+)")
_UNKNOWN_KEY = re.compile(r"does not accept option '([\w.]+)'")
_UNKNOWN_KEY_OF_ITEM = re.compile(r"Option '([\w.]+)' is not accepted")
_MISSING_KEY_OF_ITEM = re.compile(r"the following arguments are required: (\w+)")
_MISSING_VALUE = re.compile(r"argument --([\w.]+).*: expected one argument")
_KEY = re.compile(r'Parser key "([\w.]+)"')
_VALUE = tuple(map(re.compile, (r"Given value: (.*)", r"Got value: (.*)", r'Unable to load config "(.*)"')))
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


def explain(message: str, command: str, settings: type) -> str:
    """A parser's message about one command, in words that name a way out.

    >>> from tessera.settings.train import TrainSettings
    >>> explain("unrecognized arguments: --optimiser.learning_rte 3", "train", TrainSettings)
    'train has no option --optimiser.learning_rte. Did you mean --optimiser.learning_rate?'
    >>> explain('Parser key "seed": Expected a <class int>. Got value: x', "train", TrainSettings)
    'seed=x: give a whole number, such as 4.'
    """
    known = {"config": str, **dict(hints_of(settings))}
    if found := _UNKNOWN_OPTION.search(message):
        return f"{command} has no option --{found[1]}. {_nearest(found[1], known, '--')}"
    if found := _UNKNOWN_WORD.search(message):
        first = next(field.name for field in fields(settings) if not field.kw_only)
        return f"{command} cannot tell what {found[1]} is: each value follows its option. Try --{first} {found[1]}."
    if found := _MISSING_VALUE.search(message):
        return f"--{found[1]} needs a value after it: give {expectation(known.get(found[1], str))}."
    if found := _UNKNOWN_KEY.search(message):
        return f"{command} has no setting {found[1]}. {_nearest(found[1], known)}"
    return _explain_value(message, known)


def _explain_value(message: str, known: dict[str, Any]) -> str:
    """About the value of a key, or about a key of a list's item."""
    keys = _KEY.findall(message)
    if not keys:
        return message
    items = [name.removeprefix(f"{keys[0]}.") for name in known if name.startswith(f"{keys[0]}.")]
    if found := _UNKNOWN_KEY_OF_ITEM.search(message):
        return f"an item of {keys[0]} has no setting {found[1]}. {_nearest(found[1], items)}"
    if found := _MISSING_KEY_OF_ITEM.search(message):
        return f"an item of {keys[0]} lacks {found[1]}: give each of them {', '.join(items)}."
    value = next((found[1] for pattern in _VALUE if (found := pattern.search(message))), None)
    name = ".".join(dict.fromkeys(keys))
    if value is None or name not in known:
        return message
    return f"{name}={value}: give {expectation(known[name])}."


def nearest_command(message: str, commands: Iterable[str]) -> str:
    """A message about a command that is missing or unknown, with the commands there are."""
    listed = ", ".join(commands)
    if found := re.search(r"invalid choice: '(.*?)'", message):
        near = get_close_matches(found[1], listed.split(", "), n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are {listed}."
        return f"{found[1]} is no command. {hint}"
    return f"no command is given: choose one of {listed}. `tessera train --help` lists the settings of one."


def _nearest(refused: str, known: Collection[str], dashes: str = "") -> str:
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
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, kinds))}"
    if get_origin(hint) is tuple:
        return _TUPLES[kinds]
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
