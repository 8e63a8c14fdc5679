"""Configuration files, looked at before they are parsed: the parser does not say which file it cannot use, or why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from tessera.settings.keys import expectation, hints_of, is_settings


def config_files(words: Sequence[str]) -> list[Path]:
    """The files that a command line names with --config.

    >>> config_files(["train", "--config", "a.yaml", "--seed", "1", "--config=b.yaml"])
    [PosixPath('a.yaml'), PosixPath('b.yaml')]
    """
    follows = [after for word, after in pairwise(words) if word == "--config"]
    joined = [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
    return [Path(name).expanduser() for name in (*follows, *joined)]


def check_config_file(path: Path, settings: type) -> None:
    """Refuse a file that holds no settings.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no YAML, not `key: value` lines, or a group of settings in it has no lines of its own.
    """
    if not path.is_file():
        there = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"--config {path}: it {there}. Give a YAML file of settings.")
    try:
        content = _content(path)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path} is not valid YAML{_place(error)}. Write `key: value` lines.") from None
    if not isinstance(content, Mapping):
        held = "nothing" if content is None else "a list" if isinstance(content, list) else "a bare value"
        raise ValueError(f"--config {path} holds {held} where settings should be: write lines such as `seed: 2015`.")
    _check_values(content, settings, path)


def with_fresh_lists(words: Sequence[str], settings: type) -> list[str]:
    """The words with each list emptied before it is given again.

    The parser would fill what an item leaves out from the earlier list's item: sections of another volume.

    >>> from tessera.settings.train import TrainSettings
    >>> with_fresh_lists(["train", "--data.train", "[a]"], TrainSettings)
    ['train', '--data.train', '[]', '--data.train', '[a]']
    """
    lists = [name for name, hint in hints_of(settings) if get_origin(hint) is list]
    fresh: list[str] = []
    for pair in pairwise([*words, ""]):
        contents = [_content(path) for path in config_files(pair) if path.is_file()]
        given = [name for name in lists if pair[0].split("=")[0] == f"--{name}" or any(_has(c, name) for c in contents)]
        fresh += [word for name in given for word in (f"--{name}", "[]")]
        fresh.append(pair[0])
    return fresh


def _content(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _has(content: Any, name: str) -> bool:
    for part in name.split("."):
        if not isinstance(content, Mapping) or part not in content:
            return False
        content = content[part]
    return True


def _place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "it is not UTF-8 text"
    return f", line {mark.line + 1}: {problem}" if mark else f": {problem}"


def _check_values(content: Mapping[Any, Any], settings: type, path: Path, prefix: str = "") -> None:
    """Check what the parser lets through: a group that is none, and null for a setting that has no use for it."""
    hints = get_type_hints(settings)
    for name in (field.name for field in fields(settings) if field.name in content):
        value, hint = content[name], hints[name]
        if is_settings(hint) and isinstance(value, Mapping):
            _check_values(value, hint, path, f"{prefix}{name}.")
        elif is_settings(hint) and not isinstance(value, str):  # a string names another file
            first = fields(hints[name])[0].name
            raise ValueError(
                f"--config {path}: {prefix}{name}={value} where a group of settings should be. Write indented lines "
                f"such as `{first}: ...` under `{name}:`, or leave it out."
            )
        elif value is None and NoneType not in get_args(hint):
            raise ValueError(f"--config {path}: {prefix}{name}=null: give {expectation(hint)}, or leave it out.")
