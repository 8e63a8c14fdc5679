"""Where things lie: `TESSERA_HOME`, and how names in settings become paths and URLs.

What runs leave behind never lies in the current folder: a Ray job's is temporary, and lost with the job.
"""

from __future__ import annotations

import os
from pathlib import Path

from tessera.storage.locations import Place, Url, is_url, place_of


def home() -> Path:
    """`TESSERA_HOME`, by default `~/tessera`; absolute."""
    return Path(os.environ.get("TESSERA_HOME", "~/tessera")).expanduser().absolute()


def output_path(name: str, suffix: str = ".zarr") -> Place:
    """Where an output of this name goes: a bare name under `TESSERA_HOME/volumes`, a path or URL where it says.

    Raises:
      ValueError: the name is empty, or a URL that cannot be written to.
    """
    if not name:
        raise ValueError("the output has no name. Try --output my-volume, which lands in TESSERA_HOME/volumes.")
    if is_url(name):
        url = place_of(name)
        if not isinstance(url, Url) or not url.writable:
            raise ValueError(f"{name}: web servers are read only. Give an output such as s3://bucket/volume.zarr.")
        return url if url.name.endswith(suffix) else url.with_name(url.name + suffix)
    path = Path(name).expanduser()
    if path.suffix != suffix:
        path = path.with_name(path.name + suffix)
    return path.absolute() if len(path.parts) > 1 else home() / "volumes" / path


def input_path(name: str, *, anonymous: bool = False) -> Place:
    """Where an input of this name lies: a bare name under `TESSERA_HOME/volumes` first, then as a path; or a URL.

    Args:
      name: as in settings.
      anonymous: read a URL without credentials.

    Raises:
      ValueError: the name is empty, or a URL that names no volume.
      FileNotFoundError: it lies in neither place; what a URL names is looked for when it is opened.
    """
    if not name:
        raise ValueError("no input was named. Give a path, or the name of a volume under TESSERA_HOME/volumes.")
    return place_of(name, anonymous=anonymous) if is_url(name) else local_input_path(name)


def local_input_path(name: str) -> Path:
    """Where an input that must lie on a disk does: as `input_path`.

    Raises:
      ValueError: the name is empty, or a URL.
      FileNotFoundError: it is not there.
    """
    if not name:
        raise ValueError("no input was named. Give a path.")
    if is_url(name):
        raise ValueError(f"{name} is a URL: slices are read from disks only. Copy them to a local folder first.")
    given = Path(name).expanduser()
    volumes = home() / "volumes"
    named = [volumes / f"{given}.zarr", volumes / given] if len(given.parts) == 1 else []
    candidates = dict.fromkeys([*named, given])
    for path in candidates:
        if path.exists():
            return path.absolute()
    raise FileNotFoundError(f"{name} does not exist: looked for {', '.join(str(c.absolute()) for c in candidates)}.")


def same_place(one: Place, other: Place) -> bool:
    """Whether two places are one, by whatever links they are reached."""
    if isinstance(one, Path) and isinstance(other, Path):
        return one.resolve() == other.resolve()
    return str(one) == str(other)


def lies_inside(inner: Place, outer: Place) -> bool:
    """Whether a place is somewhere below another, by whatever links they are reached."""
    if isinstance(inner, Path) and isinstance(outer, Path):
        return outer.resolve() in inner.resolve().parents
    return str(inner).startswith(f"{str(outer).rstrip('/')}/")


def check_apart(output: str, source: str) -> None:
    """Refuse an output that is, holds or lies in the volume it is made from.

    `overwrite` would delete the input, and a run would write over it, or among its chunks.

    Raises:
      ValueError: names are different spellings of one place, or one lies inside the other.
    """
    try:
        read, written = input_path(source), output_path(output)
    except FileNotFoundError:  # said where it is opened
        return
    if lies_inside(written, read) or lies_inside(read, written):
        inner, outer = ("output", "input") if lies_inside(written, read) else ("input", "output")
        raise ValueError(
            f"the {inner} lies inside the {outer} ({written}, {read}): one would be taken for a part of the other, and "
            "deleted with it. Give an output beside the input."
        )
    if same_place(read, written):
        raise ValueError(
            f"output={output} is the input itself ({output_path(output)}): it would be overwritten while it is read. "
            f"Try --output {output.removesuffix('.zarr')}-2."
        )
