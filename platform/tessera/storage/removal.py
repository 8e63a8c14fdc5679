"""Deleting what tessera made, and nothing else: an output with its ledger, under the lease of whoever deletes it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from tessera.storage.attributes import is_ours
from tessera.storage.lease import Lease, is_lease
from tessera.storage.ledger_job import JOB, ledger_path, stage_folder
from tessera.storage.locations import Place, place_of
from tessera.storage.objects import child_names, exists, is_file, remove_file, remove_tree
from tessera.storage.stores import describe


def remove_output(output: Place | str, lease: Lease | None = None) -> None:
    """Delete a volume that tessera made, and its ledger; nothing happens where there is neither.

    The ledger goes first, its job last, so that a kill leaves nothing that passes for a finished output, and what is
    left can be deleted again. The lease stays: of two that delete at once, one is refused before it touches anything.

    Args:
      output: the volume.
      lease: the output's, where the caller holds it.

    Raises:
      FileExistsError: `output` or its ledger is something that tessera did not make.
      OutputInUseError: a driver works on it.
    """
    folder, ledger = place_of(output), ledger_path(output)
    check_removable(output)
    if not (exists(ledger) or exists(folder)):
        return
    with nullcontext(lease) if lease else Lease.take(ledger):
        for name in sorted(_kept(ledger), key=lambda name: name == JOB):
            _remove(ledger / name)
        if exists(folder):
            remove_tree(folder)


def check_removable(output: Place | str) -> None:
    """Make sure that whatever is at an output's place is tessera's to delete.

    Raises:
      FileExistsError: it is not.
    """
    folder, ledger = place_of(output), ledger_path(output)
    link = isinstance(folder, Path) and folder.is_symlink()
    if link or (exists(folder) and not (is_ours(folder) or _is_empty(folder))):
        raise FileExistsError(
            f"{folder} is {'a link' if link else describe(folder)} that tessera did not make: it is not "
            "deleted. Give another output, or remove it yourself."
        )
    if exists(ledger) and not (_holds_job(ledger) or _is_empty(ledger)):
        raise FileExistsError(f"{ledger} is {describe(ledger)} but no ledger: it is not deleted. Remove it yourself.")


def remove_stage(output: Place | str, stage: str) -> None:
    """Delete the ledger of one pass over an output, so that all of its blocks run again."""
    folder = stage_folder(output, stage)
    if exists(folder):
        remove_tree(folder)


def _remove(place: Place) -> None:
    if is_file(place):
        remove_file(place)
    else:
        remove_tree(place)


def _kept(ledger: Place) -> list[str]:
    """What a ledger's folder holds besides leases."""
    return [name for name in child_names(ledger) if not is_lease(name)]


def _holds_job(ledger: Place) -> bool:
    """Whether there is a job in a ledger's folder, or in that of one of its stages."""
    names = child_names(ledger)
    return JOB in names or any(is_file(ledger / name / JOB) for name in names)


def _is_empty(place: Place) -> bool:
    """Nothing in it but what a killed driver left before it began a job, or in the midst of deleting one."""
    return isinstance(place, Path) and place.is_dir() and all(name.startswith(".") for name in _kept(place))
