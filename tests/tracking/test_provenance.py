"""A run names the code that made it, or says nothing: never another project's commit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tessera import __version__
from tessera.tracking.provenance import code_tags, command_line
from tessera.tracking.runs import tracked_run, tracking_uri
from tessera.tracking.source_tree import tree_name

COMMIT = "mlflow.source.git.commit"


def _git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=Lab", "-c", "user.email=lab@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *who, "-C", str(folder), *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _always(folder: Path) -> dict[str, str]:
    return {"tessera.version": __version__, "tessera.tree": tree_name(folder)}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in a checkout, committed."""
    folder = tmp_path / "checkout" / "platform" / "lab"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("one = 1\n")
    _git(tmp_path / "checkout", "init", "--quiet")
    _git(folder, "add", ".")
    _git(folder, "commit", "--quiet", "--message", "One")
    return folder


def test_the_commit_of_a_clean_checkout_is_told(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = _git(package, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as a hook sets it for its own checkout
    assert code_tags(package) == {**_always(package), COMMIT: head, "tessera.dirty": "false"}


@pytest.mark.parametrize("name", ["__init__.py", "new.py"])
def test_changed_and_new_files_of_the_package_make_it_dirty(package: Path, name: str) -> None:
    (package / name).write_text("two = 2\n")
    assert code_tags(package)["tessera.dirty"] == "true"


def test_what_lies_beside_the_package_is_not_what_ran(package: Path) -> None:
    (package.parents[1] / "notes.txt").write_text("see page 2")
    assert code_tags(package)["tessera.dirty"] == "false"


def test_an_environment_inside_another_checkout_has_no_commit_of_its_own(package: Path) -> None:
    installed = package.parents[1] / ".venv" / "lib" / "other"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    assert code_tags(installed) == _always(installed)


def test_outside_any_checkout_the_version_and_the_name_of_the_sources_remain(tmp_path: Path) -> None:
    assert code_tags(tmp_path) == _always(tmp_path)


def test_a_run_tells_its_command_and_settings_without_passwords(home: Path, empty_database: Path) -> None:
    (home / "mlflow.db").write_bytes(empty_database.read_bytes())
    uri = tracking_uri(None, home)
    ids = []
    for name in ("one", "other"):
        params = {"name": name, "seed": 1, "source": "https://me:secret@host/stack"}
        with tracked_run(uri, "tests", name, params, {}, home) as run:
            ids.append(run.run_id)
    first, second = (MlflowClient(uri).get_run(run_id).data for run_id in ids)
    assert first.tags["tessera.version"] == __version__
    assert first.tags["tessera.command"] == command_line(sys.argv)
    assert first.tags["tessera.config_digest"] == second.tags["tessera.config_digest"], "names change nothing"
    assert first.params["source"] == "https://***@host/stack"


def test_going_on_with_other_code_is_told_beside_what_began(home: Path, empty_database: Path) -> None:
    (home / "mlflow.db").write_bytes(empty_database.read_bytes())
    uri, client = tracking_uri(None, home), MlflowClient(tracking_uri(None, home))
    with tracked_run(uri, "tests", "a run", {}, {"tessera.version": "0.0.1"}, home) as run:
        pass
    with tracked_run(uri, "tests", "a run", {}, {}, home, resume=run.run_id):
        pass
    tags = client.get_run(run.run_id).data.tags
    assert (tags["tessera.version"], tags["tessera.resumed.version"]) == ("0.0.1", __version__)
    assert "tessera.resumed.commit" not in tags, "the commit is the same"
