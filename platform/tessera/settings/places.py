"""Where things lie: `TESSERA_HOME`, and how names in settings become paths.

What runs leave behind never lies in the current folder: a Ray job's is temporary, and lost with the job.
"""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """`TESSERA_HOME`, by default `~/tessera`; absolute."""
    return Path(os.environ.get("TESSERA_HOME", "~/tessera")).expanduser().absolute()


def output_path(name: str, suffix: str = ".zarr") -> Path:
    """Where an output of this name goes: a bare name under `TESSERA_HOME/volumes`, a path where it says.

    Raises:
      ValueError: the name is empty.
    """
    if not name:
        raise ValueError("the output has no name. Try --output my-volume, which lands in TESSERA_HOME/volumes.")
    path = Path(name).expanduser()
    if path.suffix != suffix:
        path = path.with_name(path.name + suffix)
    return path.absolute() if len(path.parts) > 1 else home() / "volumes" / path


def input_path(name: str) -> Path:
    """Where an input of this name lies: a bare name under `TESSERA_HOME/volumes` first, then as a path.

    Raises:
      ValueError: the name is empty.
      FileNotFoundError: it lies in neither place.
    """
    if not name:
        raise ValueError("no input was named. Give a path, or the name of a volume under TESSERA_HOME/volumes.")
    if "://" in name:
        raise ValueError(f"{name} is a URL: object stores are not supported yet. Copy the volume to a local disk.")
    given = Path(name).expanduser()
    volumes = home() / "volumes"
    named = [volumes / f"{given}.zarr", volumes / given] if len(given.parts) == 1 else []
    candidates = dict.fromkeys([*named, given])
    for path in candidates:
        if path.exists():
            return path.absolute()
    raise FileNotFoundError(f"{name} does not exist: looked for {', '.join(str(c.absolute()) for c in candidates)}.")


def check_apart(output: str, source: str) -> None:
    """Refuse an output that is the volume it is made from: `overwrite` would delete it, and a run would write over it.

    Raises:
      ValueError: names are different spellings of one place.
    """
    try:
        same = input_path(source).resolve() == output_path(output).resolve()
    except FileNotFoundError:  # said where it is opened
        return
    if same:
        raise ValueError(
            f"output={output} is the input itself ({output_path(output)}): it would be overwritten while it is read. "
            f"Try --output {Path(output).stem}-2."
        )
