"""The `tessera` command as a user meets it, in this process: words in, exit code and text out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tessera.cli.main import main

Refused = Callable[..., str]


@dataclass(frozen=True)
class Answer:
    """What a command gave back: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


def tessera(capsys: pytest.CaptureFixture[str], *words: object) -> Answer:
    """Run one command."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return Answer(code, out, err)


def refusal(capsys: pytest.CaptureFixture[str], home: Path, *words: object) -> str:
    """The message of a command that must be refused as unusable input, with nothing begun and nothing changed."""
    before = _files(home)
    answer = tessera(capsys, *words)
    assert (answer.code, answer.out) == (2, ""), answer
    assert answer.err.startswith("tessera: error: ") and answer.err.count("\n") == 1, answer.err
    assert _files(home) == before
    return answer.err.removeprefix("tessera: error: ").rstrip("\n")


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    found = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {path: (status.st_size, status.st_mtime_ns) for path, status in found.items()}
