"""One process per folder at a time, on one machine: the system frees the lock of a process that dies."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Be the only process that works in a folder; it is made where it is missing.

    A network file system that keeps no locks lets everyone in.

    Raises:
      FileExistsError: another process does; names the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as file:  # not inherited: what this process starts holds no lock
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(
                f"another process is working in {folder}: two would write over each other's files. Let it finish, "
                "end it, or give another --name."
            ) from None
        except OSError:
            pass
        yield
