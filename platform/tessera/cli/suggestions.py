"""What a parser refused, said again in the words of settings: the key, what it was given, and what would work.

The parser speaks of Python types, unions and class paths; its message is read here and only here. What is not
recognised stays as it came.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from tessera.settings.keys import expectation, hints_of, nearest

_UNKNOWN_OPTION = re.compile(r"unrecognized arguments: --([\w.+]+)")
_UNKNOWN_WORD = re.compile(r"unrecognized arguments: (\S+)")
_UNKNOWN_KEY = re.compile(r"does not accept option '([\w.]+)'")
_UNKNOWN_KEY_OF_ITEM = re.compile(r"Option '([\w.]+)' is not accepted")
_MISSING_KEY_OF_ITEM = re.compile(r"the following arguments are required: (\w+)")
_MISSING_VALUE = re.compile(r"argument --([\w.]+).*: expected one argument")
_KEY = re.compile(r'Parser key "([\w.]+)"')
_VALUE = tuple(map(re.compile, (r"Given value: (.*)", r"Got value: (.*)", r'Unable to load config "(.*)"')))


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
        return f"{command} has no option --{found[1]}. {nearest(found[1], known, '--')}"
    if found := _UNKNOWN_WORD.search(message):
        first = next(field.name for field in fields(settings) if not field.kw_only)
        return f"{command} cannot tell what {found[1]} is: each value follows its option. Try --{first} {found[1]}."
    if found := _MISSING_VALUE.search(message):
        return f"--{found[1]} needs a value after it: give {expectation(known.get(found[1], str))}."
    if found := _UNKNOWN_KEY.search(message):
        return f"{command} has no setting {found[1]}. {nearest(found[1], known)}"
    return _explain_value(message, known)


def _explain_value(message: str, known: dict[str, Any]) -> str:
    """About the value of a key, or about a key of a list's item."""
    keys = _KEY.findall(message)
    if not keys:
        return message
    items = [name.removeprefix(f"{keys[0]}.") for name in known if name.startswith(f"{keys[0]}.")]
    if found := _UNKNOWN_KEY_OF_ITEM.search(message):
        return f"an item of {keys[0]} has no setting {found[1]}. {nearest(found[1], items)}"
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
