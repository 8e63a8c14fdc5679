"""The Dockerfile as a list of instructions, and a builder that follows it without a Docker engine.

The builder does what a build does with files: it copies what COPY names, into a folder that stands for the image's
root, and runs the RUN lines of our own scripts there. It has no base image: what RUN asks of Debian is left out.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKERFILE = REPOSITORY / "infra" / "docker" / "Dockerfile"
OURS = "infra/"


@dataclass(frozen=True)
class Stage:
    """One FROM and what follows: `base` is an image's or another stage's name; instructions are (word, rest)."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def of(self, word: str) -> list[str]:
        """The rest of each instruction of this kind."""
        return [rest for found, rest in self.instructions if found == word]


def stages() -> dict[str, Stage]:
    """The Dockerfile's stages by name."""
    found: dict[str, Stage] = {}
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    for line in text.replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = Stage(name, base)
        elif word:
            list(found.values())[-1].instructions.append((word, " ".join(rest.split())))
    return found


def lineage(name: str) -> list[Stage]:
    """A stage and those it is built on, first to last."""
    known = stages()
    stage = known[name]
    return [*(lineage(stage.base) if stage.base in known else []), stage]


def sources(copy: str) -> list[str]:
    """What a COPY takes from the checkout; nothing where it takes from another stage."""
    *words, _ = shlex.split(copy)
    return [] if words[0].startswith("--from=") else words


@dataclass(frozen=True)
class Image:
    """What following a stage left behind: the root folder, the folder that jobs start in, and the environment."""

    root: Path
    workdir: Path
    environment: dict[str, str]

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as the container would, absolute folders of the image being those below its root."""
        local = re.sub(r"(?<![\w.])/opt/tessera", str(self.root / "opt/tessera"), command)
        return subprocess.run(
            local, shell=True, cwd=self.workdir, env=self.environment, capture_output=True, text=True, check=False
        )


def follow(name: str, root: Path) -> Image:
    """Build a stage below `root`, the stages that it copies from first.

    Raises:
      RuntimeError: a step failed; its output is quoted.
    """
    image = Image(root, root / "src", _bare_environment(root))
    for instruction in (one for stage in lineage(name) for one in stage.instructions):
        match instruction:
            case "COPY", rest if rest.startswith("--from="):
                follow(rest.split()[0].removeprefix("--from="), root)
            case "COPY", rest:
                _copy(rest, image.workdir)
            case "WORKDIR", rest:
                image = Image(root, root / rest.lstrip("/"), image.environment)
            case "ENV", rest:
                image.environment.update(_variables(rest, image))
            case "RUN", rest:
                _run(rest, image)
    return image


def _bare_environment(root: Path) -> dict[str, str]:
    """What any process has, and how this machine's pip finds its packages; no virtual environment, no PYTHONPATH."""
    kept = {key: value for key, value in os.environ.items() if re.match(r"PIP_|SSL_|\w+_proxy$", key, re.IGNORECASE)}
    (root / "home").mkdir(parents=True, exist_ok=True)
    system = os.pathsep.join(("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"))
    configured = Path.home() / ".config" / "pip" / "pip.conf"
    return kept | {"PATH": system, "HOME": str(root / "home"), "PIP_CONFIG_FILE": str(configured)}


def _copy(rest: str, workdir: Path) -> None:
    *names, target = shlex.split(rest)
    for name in names:
        source, into = REPOSITORY / name, workdir / target
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, into, dirs_exist_ok=True, ignore=ignore)
        else:
            into.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, into)


def _variables(rest: str, image: Image) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in shlex.split(rest))
    found = {name: value.replace("$PATH", image.environment["PATH"]) for name, _, value in pairs}
    return {name: value.replace("/opt/tessera", str(image.root / "opt/tessera")) for name, value in found.items()}


def _run(rest: str, image: Image) -> None:
    command = re.sub(r"^(--mount=\S+ )+", "", rest)
    if not command.startswith(OURS):
        return
    done = image.run(command)
    if done.returncode:
        raise RuntimeError(f"{command} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
