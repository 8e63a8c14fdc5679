"""Checkpoints that are whole or absent, and a list of them that outlives a process killed while it is written.

Ray Train copies a checkpoint file by file into its place, and writes its list of reported checkpoints over in place: a
kill or a full disk at that instant leaves half a checkpoint, or an empty list and with it a run that cannot go on. So
a checkpoint is written here beside its place and renamed, and the list is kept a second time, once the controller has
heard the report:

    written under another name --> renamed --> in Ray Train's list --> heard --> in the second list

A run goes on from the second list. What died on the way to it is taken away, and its steps are taken and told again.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME as LIST

from tessera.storage.files import write_atomically

HEARD = "checkpoints.json"
_PREFIX, _DRAFT = "checkpoint_", ".draft-"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Heard:
    """A checkpoint whose report the controller heard.

    Attributes:
      folder: where it lies.
      metrics: what rank 0 reported with it.
    """

    folder: Path
    metrics: Mapping[str, Any]


def write_checkpoint(folder: Path, save: Callable[[Path], None]) -> None:
    """Let `save` fill a folder, which is there under its name once it is whole.

    Raises:
      OSError, RuntimeError: what `save` raised; nothing is left of the attempt, so that its room is free again.
    """
    draft = folder.with_name(_DRAFT + folder.name)
    try:
        draft.mkdir(parents=True)
        save(draft)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def keep_as_heard(run: Path) -> None:
    """Copy Ray Train's list of checkpoints, after it wrote it and before it writes over it again."""
    if (run / LIST).exists():
        write_atomically(run / HEARD, (run / LIST).read_bytes())


def last_heard(run: Path) -> Heard | None:
    """The last checkpoint that was heard of; None where there is none.

    Raises:
      FileNotFoundError: it is gone.
    """
    listed = _listed(run)
    if listed is None:
        return None
    latest = listed["latest_checkpoint_result"]
    return Heard(run / latest["checkpoint_dir_name"], latest["metrics"])


def mend(run: Path) -> None:
    """Make a run's folder fit to go on in after any death: a whole list, and no checkpoint that is not in it.

    Raises:
      FileNotFoundError: the last checkpoint that was heard of is gone.
    """
    if not run.exists():
        return
    listed = _listed(run)
    known = {result["checkpoint_dir_name"] for result in listed["checkpoint_results"]} if listed else set()
    for folder in run.iterdir():
        torn = folder.name.startswith(_DRAFT)
        if torn or (folder.name.startswith(_PREFIX) and folder.is_dir() and folder.name not in known):
            shutil.rmtree(folder)
    if listed is None:
        (run / LIST).unlink(missing_ok=True)
    else:
        write_atomically(run / LIST, json.dumps(listed).encode())


def _listed(run: Path) -> dict[str, Any] | None:
    """The second list, without checkpoints that made room for one that was listed and not yet heard of."""
    if not (run / HEARD).exists():
        return None
    listed = dict(json.loads((run / HEARD).read_bytes()))
    latest = listed["latest_checkpoint_result"]["checkpoint_dir_name"]
    if not (run / latest).is_dir():
        raise FileNotFoundError(
            f"the checkpoint {latest} is gone from {run}: the run would begin again from step 0 over what it reported. "
            "Put it back, or train under another --name."
        )
    there = [(run / result["checkpoint_dir_name"]).is_dir() for result in listed["checkpoint_results"]]
    for name in ("checkpoint_results", "checkpoint_report_indices"):
        listed[name] = [value for value, is_there in zip(listed[name], there, strict=True) if is_there]
    return listed


def without_room(error: BaseException, folder: Path) -> str | None:
    """A message that names the folder and the mend, where `error` says that there is no room; else None."""
    causes = [cause for cause in _causes(error) if _says_no_room(cause)]
    if not causes:
        return None
    return (
        f"there is no room for a checkpoint in {folder} ({causes[0]}). The last checkpoint is kept. Free space on that "
        "file system, or raise the quota, and give the same command again: it goes on from there."
    )


def _says_no_room(error: BaseException) -> bool:
    # HDF5 tells the system's words, not its number.
    return getattr(error, "errno", None) in _NO_ROOM or "No space left on device" in str(error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = getattr(error, "controller_failure", None) or error.__cause__ or error.__context__
