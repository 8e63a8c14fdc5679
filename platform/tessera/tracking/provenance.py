"""Which code and which words made a run: the commit, whether it was changed, the command and a digest of the settings.

MLflow looks up the commit of the current folder; a job's is temporary, and a script's may be another project's. Here it
is that of the checkout which the running package is a tracked part of, and none where it is installed elsewhere, or was
sent along with a job. The name of the package's sources, in the tag `tessera.tree`, says what ran in any case.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tessera import __version__
from tessera.tracking.source_tree import tree_name

PACKAGE = Path(__file__).resolve().parents[1]
GIT_SECONDS = 10.0

# They name and keep a run and change nothing that it computes.
_NAMES = ("name", "register_as", "tracking")


def code_tags(package: Path = PACKAGE) -> dict[str, str]:
    """The version, the sources' name, and in a checkout MLflow's tag of the commit and whether the package was changed.

    Args:
      package: the folder whose code runs; only changes below it, or files that git does not know there, count.
    """
    version = {"tessera.version": __version__, "tessera.tree": tree_name(package)}
    commit = _commit(package)
    if commit is None:
        return version
    return {**version, "mlflow.source.git.commit": commit, "tessera.dirty": str(_is_dirty(package)).lower()}


def run_tags(params: Mapping[str, Any], words: Sequence[str] | None = None) -> dict[str, str]:
    """Tags that say how a run came about: code, command line and settings.

    Args:
      params: the run's settings, nested plain values.
      words: the command line; this process's by default.
    """
    command = command_line(sys.argv if words is None else words)
    return {**_running_code(), "tessera.command": command, "tessera.config_digest": config_digest(params)}


def config_digest(params: Mapping[str, Any]) -> str:
    """16 digits that two runs share where all their settings agree but for names and the place where runs are kept.

    >>> config_digest({"name": "a", "seed": 1}) == config_digest({"seed": 1, "name": "b"})
    True
    >>> config_digest({"seed": 1}) == config_digest({"seed": 2})
    False
    """
    counted = {key: value for key, value in params.items() if key not in _NAMES}
    return hashlib.sha256(json.dumps(counted, sort_keys=True, default=str).encode()).hexdigest()[:16]


def command_line(words: Sequence[str]) -> str:
    """A command as it can be typed again, its program without folder and no password in an address.

    >>> command_line(["/opt/lab/bin/tessera", "train", "--tracking.uri", "http://me:secret@host:5000"])
    'tessera train --tracking.uri http://***@host:5000'
    >>> command_line(["/opt/lab/tessera/__main__.py", "train"])
    'python -m tessera train'
    """
    first, *rest = words or [""]
    program = Path(first)
    # What `python -m` leaves of the module's name is the folder.
    start = ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    return without_passwords(shlex.join([*start, *rest]))[:5000]


def without_passwords(text: str) -> str:
    """The same text with users, passwords and queries of addresses masked: runs and logs are read by many.

    >>> without_passwords("http://me:word@host/v and https://host/v.zarr?signature=word")
    'http://***@host/v and https://host/v.zarr?***'
    """
    masked = re.sub(r"(\w://)[^/\s@]+@", r"\1***@", text)
    # A signed link's query is a key to what it links to.
    return re.sub(r"(\w://[^\s?'\"]+\?)[^\s'\"]+", r"\1***", masked)


@lru_cache(maxsize=1)
def _running_code() -> dict[str, str]:
    """Of this process: what it imported does not change when someone commits meanwhile."""
    return code_tags()


def _commit(package: Path) -> str | None:
    # An environment inside a checkout of something else is no part of that checkout.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return _git(package, "rev-parse", "HEAD")


def _is_dirty(package: Path) -> bool:
    return _git(package, "status", "--porcelain", "--", ".") != ""


def _git(folder: Path, *words: str) -> str | None:
    """What git says of a folder; None where it fails, is not there or does not answer."""
    # A hook's variables would point it to another checkout.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=GIT_SECONDS,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
