"""The README's words are true of the tree: its commands parse, and the files, tests and targets it names are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tessera.cli.main import parse

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text()
COMMANDS = re.findall(r"(?:\.venv/bin/|`)tessera ([a-z][^`]*?)(?:`|\n(?!.*?`))", README.replace("\\\n", " "))
# What a reader fills in, and files that are the reader's own.
PLACES = {"$D": "stacks", "my.yaml": "configs/demo.yaml"}


def _words(command: str) -> list[str]:
    for place, instead in PLACES.items():
        command = command.replace(place, instead)
    return shlex.split(command, comments=True)


def test_the_commands_of_both_walks_are_found() -> None:
    named = {_words(command)[0] for command in COMMANDS}
    assert named >= {"ingest", "train", "predict", "segment", "evaluate"}
    assert len(COMMANDS) >= 12


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses_with_todays_settings(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    name, settings = parse(_words(command))
    assert type(settings).__name__ == f"{name.capitalize()}Settings"


def test_make_targets_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    named = set(re.findall(r"(?:^ {4}|`)make ([a-z]+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named
    assert [target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_files_exist_and_tests_are_where_they_are_said_to_be() -> None:
    named = set(re.findall(r"[`(]((?:configs|jobs|tests|infra|platform)/[\w./-]*\w)", README))
    assert any(name.startswith("infra/pictures/") for name in named)
    assert [name for name in sorted(named) if not (REPOSITORY / name).exists()] == []
    for file, test in re.findall(r"`(tests/[\w/]+\.py)`: `(test_\w+)`", README):
        assert f"def {test}(" in (REPOSITORY / file).read_text(), f"{file} has no {test}"
