"""The images: what the Dockerfile says, and the images' steps themselves, run in an empty folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from dockerfile import REPOSITORY, Stage, follow, lineage, sources, stages

TARGETS = ("cpu", "gpu")
INSTALL = REPOSITORY / "infra" / "docker" / "install.sh"
HEALTHY = REPOSITORY / "infra" / "docker" / "healthy.sh"


def _last(name: str) -> Stage:
    return stages()[name]


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_nobody_in_particular_and_tells_its_health(target: str) -> None:
    words = [word for word, _ in _last(target).instructions]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", _last(target).of("USER")[-1])
    # What follows USER would belong to it: nothing of the image may be changed by who runs in it.
    assert words.index("USER") > max(n for n, word in enumerate(words) if word in ("RUN", "COPY"))
    (health,) = _last(target).of("HEALTHCHECK")
    assert json.loads(health.partition("CMD ")[2]) == [str(HEALTHY.relative_to(REPOSITORY))]


def test_the_images_differ_in_their_packages_alone() -> None:
    cpu, gpu = (str([_last(target).instructions, _last(f"packages-{target}").instructions]) for target in TARGETS)
    assert cpu.replace("cpu", "gpu") == gpu
    assert "packages cpu" in cpu


@pytest.mark.parametrize("target", TARGETS)
def test_a_commit_changes_none_of_the_large_layers(target: str) -> None:
    packages = lineage(f"packages-{target}")[-1]
    copied = [name for rest in packages.of("COPY") for name in sources(rest)]
    # Nothing but what says which packages and how: the layer is made again when one of these changes.
    assert set(copied) == {"pyproject.toml", "infra/constraints.txt", "infra/docker/install.sh"}
    last = _last(target).of("COPY")
    assert last[0].startswith(f"--from=packages-{target}") and last[-1].startswith("platform")


def test_all_that_is_copied_is_there_and_not_ignored() -> None:
    rules = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    copied = {name for stage in stages().values() for rest in stage.of("COPY") for name in sources(rest)}
    assert {"platform", "jobs", "configs", "infra/constraints.txt"} <= copied
    for name in copied:
        assert (REPOSITORY / name).exists(), name
        assert _travels(name, rules), f"{name} does not get to the builder"
    for secret in (".git", ".env", "mlflow.db", "tests", "infra/pictures", "platform/tessera/__pycache__"):
        assert not _travels(secret, rules), secret


def _travels(name: str, rules: list[str]) -> bool:
    """Whether a name gets past .dockerignore: the last rule that it or a folder above it matches decides."""
    above = [name, *(str(parent) for parent in Path(name).parents if str(parent) != ".")]
    ignored = False
    for rule in rules:
        pattern = rule.removeprefix("!").removeprefix("**/")
        if any(fnmatch(one, pattern) or ("**/" in rule and fnmatch(Path(one).name, pattern)) for one in above):
            ignored = not rule.startswith("!")
    return not ignored


def test_no_layer_keeps_an_apt_list_or_a_pip_cache() -> None:
    for stage in stages().values():
        for rest in stage.of("RUN"):
            assert "apt-get update" not in rest or rest.endswith("rm -rf /var/lib/apt/lists/*")
    installs = re.findall(r"pip install[^\n]*(?:\\\n[^\n]*)?", INSTALL.read_text())
    assert len(installs) == 2 and all("--no-cache-dir" in one for one in installs)


def test_the_gpu_image_brings_cuda_at_pinned_versions() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(one.startswith("tensorflow[and-cuda]") for one in extras["gpu"])
    pins = (REPOSITORY / "infra" / "constraints.txt").read_text()
    for package in ("nvidia-cudnn-cu12", "nvidia-nccl-cu12", "psycopg2-binary", "boto3"):
        assert re.search(rf"^{package}==\d", pins, re.MULTILINE), package


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["packages", "tpu", "x"], "'tpu' is no target: cpu or gpu"),
        (["build", "x"], "'build' is no step"),
        (["packages"], "usage"),
    ],
)
def test_a_step_that_is_none_is_refused(words: list[str], said: str) -> None:
    done = subprocess.run([INSTALL, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and said in done.stderr


def test_a_container_without_a_working_tessera_is_not_healthy(tmp_path: Path) -> None:
    if subprocess.run(["grep", "-qsx", "raylet", *_comms()], check=False).returncode == 0:
        pytest.skip("a Ray runs on this machine, which healthy.sh would ask instead")
    for code in (0, 1):
        command = tmp_path / "tessera"
        command.write_text(f"#!/bin/sh\nexit {code}\n")
        command.chmod(0o755)
        environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
        assert subprocess.run([HEALTHY], env=environment, check=False).returncode == code


def _comms() -> list[str]:
    return [str(path) for path in Path("/proc").glob("[0-9]*/comm")]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_cpu_image_is_built_by_its_own_steps_in_an_empty_folder(tmp_path: Path) -> None:
    image = follow("cpu", tmp_path)
    checked = image.run("infra/docker/install.sh check /opt/tessera")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "No broken requirements found" in checked.stdout
    for name in ("tessera", "ray", "mlflow", "python"):
        found = image.run(f"command -v {name}").stdout.strip()
        assert found == str(tmp_path / "opt/tessera/bin" / name)
    # Installed, not read from the folder that jobs start in; and a job of that folder is understood.
    where = image.run("cd / && python -c 'import tessera; print(tessera.__file__)'").stdout
    assert where.startswith(str(tmp_path / "opt/tessera/lib"))
    asked = image.run("python jobs/train.py --help")
    assert asked.returncode == 0 and "--schedule.steps" in asked.stdout
    drivers = image.run("python -c 'import psycopg2, boto3'")
    assert drivers.returncode == 0, drivers.stderr


@pytest.mark.slow
def test_the_gpu_images_packages_can_all_be_had_together(tmp_path: Path) -> None:
    # Resolved, not downloaded: CUDA's packages are gigabytes.
    wanted = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    names = [*wanted["dependencies"], *wanted["optional-dependencies"]["gpu"]]
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run(["python3", "-m", "venv", tmp_path / "env"], check=True)
    command = [python, "-m", "pip", "install", "--dry-run", "--quiet", "--report", tmp_path / "report.json"]
    command += ["--constraint", REPOSITORY / "infra" / "constraints.txt", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    chosen = {one["metadata"]["name"].lower() for one in json.loads((tmp_path / "report.json").read_text())["install"]}
    assert {"tensorflow", "nvidia-cudnn-cu12", "ray", "mlflow"} <= chosen
