"""The block ledger: which blocks of an output are done, kept so that a killed job resumes without losing any.

    OUTPUT.zarr.ledger/
      job.json                      what the job is: key, description
      part-00000000-1a2b3c4d.parquet    rows, never changed once there
      faces/                        a second pass over the same output: its own job.json and parts

Done means written, then recorded: a block counts when its row is in a part on disk. A crash loses at most the rows of
the last seconds; their blocks run again, which is harmless.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tessera.storage.attributes import is_ours, volume_id
from tessera.storage.lease import EXPIRY_S, Lease, LeaseLostError, OutputInUseError, is_lease, sight
from tessera.storage.ledger_rows import LedgerRow, encode_rows, list_parts, part_number, part_rows, read_part
from tessera.storage.locations import Place, place_of
from tessera.storage.objects import child_names, exists, is_file, read_bytes, remove_tree, write_new
from tessera.storage.stores import describe

__all__ = ["Ledger", "LedgerRow", "has_job", "ledger_path", "read_job", "read_rows", "remove_output", "remove_stage"]

_LOG = logging.getLogger(__name__)
_STATE = ("block", "status", "error")


def ledger_path(output: Place | str) -> Place:
    """The ledger's folder, beside the output.

    >>> ledger_path("/data/membrane.zarr").name
    'membrane.zarr.ledger'
    """
    folder = place_of(output)
    return folder.with_name(folder.name + ".ledger")


class Ledger:
    """The rows of one job over one output; open it with `Ledger.open`, in the driver only, as a context manager.

    Rows are buffered, and written as one immutable part when `flush_rows` are there, `flush_seconds` after the first of
    them, and on `close`. Safe to append to from several threads.
    """

    def __init__(self, folder: Place, lease: Lease, *, flush_rows: int, flush_seconds: float) -> None:
        self._folder, self._flush_rows, self._flush_seconds = folder, flush_rows, flush_seconds
        self._lease = lease
        self._lock = threading.RLock()
        self._buffer: list[LedgerRow] = []
        self._timer: threading.Timer | None = None
        self._closed = False
        self._done: set[int] = set()
        self._failed: dict[int, str] = {}
        parts = list_parts(folder)
        self._next_part = 1 + max((part_number(part) for part in parts), default=-1)
        for part in parts:
            columns = read_part(part)
            for block, status, error in zip(*(columns[c].to_pylist() for c in _STATE), strict=True):
                self._note(block, status, error)

    @classmethod
    def open(
        cls,
        output: Place | str,
        key: str,
        description: Mapping[str, Any],
        *,
        stage: str | None = None,
        flush_rows: int = 10_000,
        flush_seconds: float = 10.0,
        lease_seconds: float = EXPIRY_S,
    ) -> Ledger:
        """Begin a job's ledger, or resume it where the key is the same.

        Create the output first: the ledger notes its id, and refuses to resume on one that was deleted or made anew.

        Args:
          output: the volume that the job writes.
          key: whatever must agree for blocks to be reused, as a digest.
          description: the settings and grid behind the key, as JSON values; they name the difference if keys differ.
          stage: a name for one of several passes over the output, each with its own ledger.
          flush_rows: rows per part at most.
          flush_seconds: the longest that a row waits in memory.
          lease_seconds: seconds without a sign of life after which another driver counts as dead.

        Raises:
          OutputInUseError: another driver works on the output.
          ValueError: the ledger is another job's, belongs to an output that is gone, or cannot be read.
        """
        folder = _stage_folder(output, stage)
        job = {"format": 1, "key": key, "description": _plain(description), "output_id": volume_id(place_of(output))}
        lease = Lease.take(ledger_path(output), lease_seconds)
        try:
            if is_file(folder / "job.json"):
                _check_same_job(folder, _read_job(folder), job)
            else:
                _begin(folder, job)
            return cls(folder, lease, flush_rows=flush_rows, flush_seconds=flush_seconds)
        except BaseException:
            lease.release()
            raise

    def done(self) -> set[int]:
        """Blocks whose latest row says done, rows still in memory included."""
        with self._lock:
            return set(self._done)

    def failed(self) -> dict[int, str]:
        """The error of each block whose latest row says failed."""
        with self._lock:
            return dict(self._failed)

    def rows(self) -> Iterator[LedgerRow]:
        """Every row in the order of writing, those in memory last."""
        with self._lock:
            parts, buffered = list_parts(self._folder), list(self._buffer)
        for part in parts:
            yield from part_rows(part)
        yield from buffered

    def append(self, row: LedgerRow) -> None:
        """Record one attempt; call it only after the block's voxels were written.

        Raises:
          ValueError: the ledger is closed.
          OSError: a part that is due cannot be written; its rows stay in memory for the next try.
        """
        with self._lock:
            if self._closed:
                raise ValueError(f"{self._folder} is closed: block {row.block} would be lost. Open the ledger again.")
            self._buffer.append(row)
            self._note(row.block, row.status, row.error)
            if len(self._buffer) >= self._flush_rows:
                self.flush()
            elif self._timer is None:
                self._start_timer()

    def flush(self) -> None:
        """Write the rows in memory as one durable part now.

        Raises:
          LeaseLostError: another driver has the output now; these rows are not written.
          OSError: the part cannot be written; its rows stay in memory.
        """
        with self._lock:
            self._stop_timer()
            if self._buffer:
                self._lease.check()
                name = f"part-{self._next_part:08d}-{os.urandom(4).hex()}.parquet"
                write_new(self._folder / name, encode_rows(self._buffer))
                self._next_part += 1
                self._buffer.clear()

    def close(self) -> None:
        """Write what is in memory; further rows are refused.

        Raises:
          OSError: the last part cannot be written.
        """
        with self._lock:
            self._closed = True
            try:
                self.flush()
            finally:
                self._lease.release()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _note(self, block: int, status: str, error: str) -> None:
        """A block's latest row wins."""
        if status == "done":
            self._done.add(block)
            self._failed.pop(block, None)
        else:
            self._done.discard(block)
            self._failed[block] = error

    def _start_timer(self) -> None:
        # A timer and not a look at the clock on append: the next block may be ten minutes away.
        self._timer = threading.Timer(self._flush_seconds, self._flush_when_due)
        self._timer.daemon = True
        self._timer.start()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _flush_when_due(self) -> None:
        try:
            self.flush()
        except (OSError, LeaseLostError):
            _LOG.exception("%s: a part could not be written; its rows are kept for the next try", self._folder)


def read_rows(output: Place | str, *, stage: str | None = None) -> Iterator[LedgerRow]:
    """Every durable row of an output's ledger, in the order of writing; none where there is no ledger.

    Raises:
      ValueError: a part is corrupt.
    """
    for part in list_parts(_stage_folder(output, stage)):
        yield from part_rows(part)


def read_job(output: Place | str, *, stage: str | None = None) -> dict[str, Any]:
    """The contents of `job.json`: key, description, output_id.

    Raises:
      FileNotFoundError: there is no ledger.
      ValueError: it is corrupt.
    """
    return _read_job(_stage_folder(output, stage))


def has_job(output: Place | str, *, stage: str | None = None) -> bool:
    """Whether a job was begun on an output."""
    return is_file(_stage_folder(output, stage) / "job.json")


def remove_output(output: Place | str) -> None:
    """Delete a volume that tessera made, and its ledger; nothing happens where there is neither.

    The ledger goes first, and each as a whole, so that a kill leaves nothing that passes for a finished output.

    Raises:
      FileExistsError: `output` or its ledger is something that tessera did not make.
      OutputInUseError: a driver works on it.
    """
    folder, ledger = place_of(output), ledger_path(output)
    _check_unused(ledger)
    link = isinstance(folder, Path) and folder.is_symlink()
    if link or (exists(folder) and not (is_ours(folder) or _is_empty(folder))):
        raise FileExistsError(
            f"{folder} is {'a link' if link else describe(folder)} that tessera did not make: it is not "
            "deleted. Give another output, or remove it yourself."
        )
    if exists(ledger) and not (_holds_job(ledger) or _is_empty(ledger)):
        raise FileExistsError(f"{ledger} is {describe(ledger)} but no ledger: it is not deleted. Remove it yourself.")
    for doomed in (ledger, folder):
        if exists(doomed):
            remove_tree(doomed)


def _check_unused(ledger: Place) -> None:
    seen = sight(ledger)
    if seen is not None and seen.is_held():
        raise OutputInUseError(
            f"{ledger} is in use: another driver works on this output ({seen}), and would lose it. Give another "
            "output, or end that driver first."
        )


def remove_stage(output: Place | str, stage: str) -> None:
    """Delete the ledger of one pass over an output, so that all of its blocks run again."""
    folder = _stage_folder(output, stage)
    if exists(folder):
        remove_tree(folder)


def _holds_job(ledger: Place) -> bool:
    """Whether there is a job in a ledger's folder, or in that of one of its stages."""
    names = child_names(ledger)
    return "job.json" in names or any(is_file(ledger / name / "job.json") for name in names)


def _is_empty(place: Place) -> bool:
    """Nothing in it; a lease alone is nothing, its driver died before it began a job."""
    names = child_names(place)
    return isinstance(place, Path) and place.is_dir() and all(is_lease(name) for name in names)


# The job


def _stage_folder(output: Place | str, stage: str | None) -> Place:
    if stage is None:
        return ledger_path(output)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", stage):
        raise ValueError(f"stage {stage!r}: use lower-case letters, digits and _, for example 'faces'.")
    return ledger_path(output) / stage


def _plain(description: Mapping[str, Any]) -> dict[str, Any]:
    """The description as it will be read back, so that tuples and lists compare equal."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(description), sort_keys=True))
    except TypeError as error:
        raise ValueError(
            f"the job's description is not JSON ({error}): it could not be compared when the job resumes. Use plain "
            "numbers, strings, lists and dictionaries."
        ) from error
    return plain


def _begin(folder: Place, job: Mapping[str, Any]) -> None:
    if list_parts(folder):
        raise ValueError(
            f"{folder} holds ledger parts but no job.json: whose blocks they are is unknown. Restore job.json, or "
            "delete the folder to run every block again."
        )
    write_new(folder / "job.json", json.dumps(job, indent=2).encode())


def _read_job(folder: Place) -> dict[str, Any]:
    text = read_bytes(folder / "job.json")
    try:
        job: dict[str, Any] = json.loads(text)
        _ = job["key"], job["description"].keys()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / 'job.json'} is corrupt ({error!r}): whether these blocks may be reused is unknown. Restore it, "
            "or say `--overwrite true` to run every block again."
        ) from error
    return job


def _check_same_job(folder: Place, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    if old["key"] != new["key"]:
        lines = _differences(old["description"], new["description"]) or ["nothing described, such as the version"]
        raise ValueError(
            f"{folder} belongs to another job: {'; '.join(lines)}. Reusing its blocks would mix two jobs' results. "
            "Give another output, or say `--overwrite true` to delete this one."
        )
    if old.get("output_id") not in (None, new["output_id"]):
        raise ValueError(
            f"{folder} records blocks of an output that was deleted or made anew since: they would be skipped and read "
            "as zeros. Say `--overwrite true` to begin again."
        )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of fields that differ, with both values."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name, "absent"), new.get(name, "absent")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(f"{prefix}{name} was {a}, now {b}")
    return found
