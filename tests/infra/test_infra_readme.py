"""The words of infra/README.md are true of the tree: what it says to type can be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tessera.cli.main import parse

REPOSITORY = Path(__file__).resolve().parents[2]
TEXT = (REPOSITORY / "infra" / "README.md").read_text()
LINES = re.findall(r"^ {4}(\S.*)$", TEXT, re.MULTILINE)
JOBS = [line for line in LINES if re.search(r"jobs/\w+\.py", line)]
# What the settings of a reader's own volume and model would say.
OWN = {"predict": ["--volume", "raw", "--model", "models:/m/1", "--output", "p"]}


def test_the_ways_that_are_told_are_found() -> None:
    first = {line.split()[0] for line in LINES}
    assert first >= {
        "docker",
        "kubectl",
        "sbatch",
        "ray",
        "infra/docker/install.sh",
        "infra/kubernetes/make_secrets.sh",
    }
    assert len(JOBS) >= 3


@pytest.mark.parametrize("line", LINES)
def test_every_file_that_is_named_is_there(line: str) -> None:
    named = re.findall(r"\b((?:infra|jobs|configs)/[\w./-]*\w)", line)
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:docker|kubernetes|slurm|launcher)/[\w/.-]*)`", TEXT))))
def test_every_folder_that_the_text_names_is_there(name: str) -> None:
    assert (REPOSITORY / "infra" / name).exists()


@pytest.mark.parametrize("line", JOBS)
def test_a_jobs_arguments_are_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    words = shlex.split(line)
    at = next(n for n, word in enumerate(words) if word.startswith("jobs/"))
    name = Path(words[at]).stem
    assert parse([name, *words[at + 1 :], *OWN.get(name, [])])[0] == name


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("ray ")])
def test_rays_own_options_are_understood(line: str) -> None:
    from ray.scripts.scripts import cli

    words = shlex.split(line)[1:]
    words = words[: words.index("--")] if "--" in words else words
    command = cli.commands[words[0]]
    rest = words[1:]
    if words[0] == "job":
        command, rest = command.commands[rest[0]], [*rest[1:], "--", "python"]
    command.make_context("ray", rest)


@pytest.mark.parametrize("target", re.findall(r"--target (\w+)", TEXT))
def test_an_images_target_is_one_of_the_dockerfiles(target: str) -> None:
    from dockerfile import stages

    assert target in stages()
