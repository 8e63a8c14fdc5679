"""The top level of the repository: where things lie, and what must never be written down there."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from dataclasses import fields
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[1]
STANDARD_PLATFORM = Path(sysconfig.get_paths()["stdlib"]) / "platform.py"
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.y*ml"))

# Brackets keep these patterns from finding themselves.
REGISTRIES = r"p[y]pi\.org|p[y]thonhosted\.org|a[n]aconda\.(?:org|com)|r[e]gistry\.npmjs|f[i]les\.pyth"
MACHINE_PATHS = r"(?<![\w.$}~-])/(?:work|root|Users|home/(?!(?:ray|you)\b)\w+|opt/(?:pypi|wheels))\b/?"


def test_the_source_root_and_the_tests_hold_no_init_file() -> None:
    assert not (REPOSITORY / "platform" / "__init__.py").exists()
    assert not list((REPOSITORY / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("first_on_path", [".", "platform"])
def test_platform_is_the_standard_library_in_the_repository_root(first_on_path: str) -> None:
    # A job's script puts platform/ first; `python -c` puts the current folder, which holds platform/, first.
    code = f"import sys; sys.path.insert(0, {first_on_path!r}); import platform, tessera; print(platform.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == STANDARD_PLATFORM


def _platform_here(first_on_path: str) -> str | None:
    spec = PathFinder.find_spec("platform", [first_on_path, *sys.path])
    return spec.origin if spec else None


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("folder", [REPOSITORY, REPOSITORY / "platform"], ids=["repository", "source root"])
def test_platform_is_the_standard_library_in_a_ray_worker(folder: Path) -> None:
    import ray

    found = ray.get(ray.remote(_platform_here).remote(str(folder)))
    assert found == str(STANDARD_PLATFORM)


def _tracked_files() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout: nothing tells which files belong to it")
    return [path for name in listed.stdout.split("\0") if name and (path := REPOSITORY / name).is_file()]


@pytest.mark.parametrize(
    "pattern",
    [REGISTRIES, MACHINE_PATHS, re.escape(str(REPOSITORY))],
    ids=["package registry", "machine path", "this checkout"],
)
def test_no_file_names_a_package_registry_or_a_path_of_one_machine(pattern: str) -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()[:120]}"
        for path in _tracked_files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (REGISTRIES, "https://p" + "ypi.org/simple"),
        (MACHINE_PATHS, "see /" + "root/x"),
        (MACHINE_PATHS, '"/' + 'work/main"'),
    ],
)
def test_the_patterns_find_what_they_are_for(pattern: str, text: str) -> None:
    assert re.search(pattern, text)


def test_every_import_obeys_the_contracts() -> None:
    # This checkout's package, whichever one is installed.
    code = (
        "import sys; sys.path.insert(0, 'platform'); import importlinter.cli; importlinter.cli.lint_imports_command()"
    )
    command = [sys.executable, "-c", code, "--no-cache"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("job", sorted((REPOSITORY / "jobs").glob("*.py")), ids=lambda job: job.name)
def test_a_job_does_nothing_but_call_the_command_it_is_named_after(job: Path) -> None:
    from tessera.cli.main import COMMANDS

    assert job.stem in COMMANDS
    assert job.read_text() == (REPOSITORY / "jobs" / "train.py").read_text().replace("train", job.stem)


def _opening_comment(config: Path) -> str:
    lines = config.read_text().splitlines()
    return "\n".join(lines[: next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_a_config_opens_with_its_source_cost_and_score(config: Path) -> None:
    comment = _opening_comment(config)
    missing = [word for word in ("Source", "Cost", "Score") if not re.search(rf"\b{word}\b", comment, re.IGNORECASE)]
    assert not missing, f"{config.name} must open with a comment block that says Source, Cost and Score: no {missing}"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_a_config_is_understood_by_the_commands_that_have_its_settings(config: Path) -> None:
    from tessera.cli.main import COMMANDS, parse

    given = set(yaml.safe_load(config.read_text()))
    known = {name: {f.name: f.default for f in fields(command.settings)} for name, command in COMMANDS.items()}
    meant = [name for name, settings in known.items() if given <= set(settings)]
    assert meant, f"no command has all the settings of {config.name}: {sorted(given)}"
    for name in meant:
        # What names a user's own data is left to the command line.
        own = [setting for setting, default in known[name].items() if default == "" and setting not in given]
        size = ["--voxel_size_nm", "[50, 4, 4]"] if name == "ingest" and "voxel_size_nm" not in given else []
        words = [word for setting in own for word in (f"--{setting}", "any")]
        assert parse([name, "--config", str(config), *words, *size])[0] == name


def test_what_travels_with_a_job_says_nothing_that_the_job_itself_adds() -> None:
    # Ray cannot merge py_modules given both at submission and in the job.
    settings = yaml.safe_load((REPOSITORY / "infra" / "runtime_env.yaml").read_text())
    assert set(settings) == {"working_dir", "env_vars"}
    assert all(isinstance(value, str) for value in settings["env_vars"].values())


def test_what_travels_with_a_job_is_the_code_and_no_more(tmp_path: Path) -> None:
    # As `ray job submit --working-dir .` packs it.
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    excludes = [".git", ".venv", "venv", "__pycache__"]
    create_package(str(REPOSITORY), package, include_gitignore=True, excludes=excludes)
    with zipfile.ZipFile(package) as archive:
        names = set(archive.namelist())
    tops = {name.partition("/")[0] for name in names}
    assert {"platform", "jobs", "configs"} <= tops
    assert not tops & {"tests", "infra", ".ci", ".git", ".venv", "mlflow.db"}
    sources = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "platform" / "tessera").rglob("*.py")}
    assert sources <= names
    assert package.stat().st_size < 2 * 2**20, "what every submission sends, not compressed"


def _pins() -> list[Requirement]:
    lines = (REPOSITORY / "infra" / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_constraints_hold_names_and_versions_only() -> None:
    text = (REPOSITORY / "infra" / "constraints.txt").read_text()
    assert not re.search(r"://|--hash|@|^-|/", text, re.MULTILINE)
    for pin in _pins():
        assert [one.operator for one in pin.specifier] == ["=="], pin
        assert pin.url is None and not pin.extras


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_dependency_is_pinned_once_within_its_bounds(python: str) -> None:
    where = {"python_version": python, "python_full_version": f"{python}.1"}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    needed = [Requirement(one) for one in [*project["dependencies"], *project["optional-dependencies"]["dev"]]]
    pinned = [pin for pin in _pins() if pin.marker is None or pin.marker.evaluate(where)]
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pinned}
    assert len(versions) == len(pinned)
    for one in needed:
        version = versions.get(canonicalize_name(one.name))
        assert version and one.specifier.contains(version), f"{one} has {version}: run infra/update_constraints.sh"
