"""The name of the running code: git's own, without git."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tessera.tracking.source_tree import tree_name

PACKAGE = Path(__file__).resolve().parents[2] / "platform" / "tessera"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A committed folder whose names sort differently with and without git's rule for folders."""
    for name in ("a.py", "a/b.py", "a-b/c.txt", "é.py", "empty.txt"):
        path = tmp_path / "package" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if "empty" in name else f"# {name}\n")
    (tmp_path / "package" / "nothing").mkdir()
    _git(tmp_path, "init", "--quiet")
    _git(tmp_path, "add", ".")
    who = ("-c", "user.name=Lab", "-c", "user.email=lab@example.org", "-c", "commit.gpgsign=false")
    _git(tmp_path, *who, "commit", "--quiet", "--message", "One")
    return tmp_path / "package"


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_it_is_the_name_that_git_gives(folder: Path) -> None:
    assert tree_name(folder) == _git(folder, "rev-parse", "HEAD:package")


def test_a_copy_without_git_has_the_same_name_whatever_running_it_left_there(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    (copy / "__pycache__").mkdir()
    (copy / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"compiled")
    (copy / "a" / "b.pyc").write_bytes(b"compiled")
    assert tree_name(copy) == tree_name(folder)


@pytest.mark.parametrize("change", ["a.py", "a/new.py"])
def test_any_change_of_a_source_changes_it(folder: Path, change: str) -> None:
    before = tree_name(folder)
    (folder / change).write_text("changed")
    assert tree_name(folder) != before


def test_this_package_has_the_name_that_its_commit_gives_it() -> None:
    root = PACKAGE.parents[1]
    if not (root / ".git").exists() or _git(root, "status", "--porcelain", "--", "platform/tessera"):
        pytest.skip("this is no git checkout, or its package is changed: no commit has its name")
    assert tree_name(PACKAGE) == _git(root, "rev-parse", "HEAD:platform/tessera")
