"""The block ledger: which blocks of an output are done, kept so that a killed job resumes without losing any.

    OUTPUT.zarr.ledger/
      job.json                          what the job is: key, description
      lease-00000001.json               the one driver that writes it now
      part-00000000-1a2b3c4d.parquet    rows, never changed once there; many small parts become few
      faces/                            a second pass over the same output: its own job.json and parts

Done means written, then recorded: a block counts when its row is in a part on disk. A crash loses at most the rows of
the last seconds; their blocks run again, which is harmless.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from tessera.storage.block_codes import BlockCodes, Blocks
from tessera.storage.lease import EXPIRY_S, Lease, LeaseLostError
from tessera.storage.ledger_job import begin_or_resume, has_job, ledger_path, read_job, stage_folder
from tessera.storage.ledger_parts import (
    Part,
    all_rows,
    latest_of,
    list_parts,
    merged_parts,
    new_part,
    read_parts,
    run_to_merge,
    write_merged,
)
from tessera.storage.ledger_rows import CODES, LedgerRow, encode_rows, status_codes
from tessera.storage.locations import Place
from tessera.storage.objects import remove_file, write_new

__all__ = ["Ledger", "LedgerRow", "has_job", "ledger_path", "read_job", "read_rows"]

_LOG = logging.getLogger(__name__)
_DONE, _FAILED = CODES["done"], CODES["failed"]


class Ledger:
    """The rows of one job over one output; open it with `Ledger.open`, in the driver only, as a context manager.

    Rows are buffered, and written as one immutable part when `flush_rows` are there, `flush_seconds` after the first of
    them, and on `close`. Safe to append to from several threads. In memory a block takes a byte, and one that was given
    up its error besides.
    """

    def __init__(self, folder: Place, lease: Lease, *, own: bool, flush_rows: int, flush_seconds: float) -> None:
        self._folder, self._flush_rows, self._flush_seconds = folder, flush_rows, flush_seconds
        self._lease, self._lease_is_own = lease, own
        self._lock = threading.RLock()
        self._buffer: list[LedgerRow] = []
        self._timer: threading.Timer | None = None
        self._closed = False
        self._codes = BlockCodes()
        self._errors: dict[int, str] = {}
        self._parts, self._sizes = list_parts(folder), list[int]()
        self._load()

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
        lease: Lease | None = None,
        lease_expiry_s: float = EXPIRY_S,
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
          lease: the output's, where the caller holds it, and goes on to; without it one is taken until `close`.
          lease_expiry_s: seconds without a sign of life after which another driver may think this one dead.

        Raises:
          OutputInUseError: another driver works on the output.
          ValueError: the ledger is another job's, belongs to an output that is gone, or cannot be read.
        """
        held = lease or Lease.take(ledger_path(output), lease_expiry_s)
        try:
            folder = begin_or_resume(output, stage, key, description)
            return cls(folder, held, own=lease is None, flush_rows=flush_rows, flush_seconds=flush_seconds)
        except BaseException:
            if lease is None:
                held.release()
            raise

    # What is there

    def done(self) -> Blocks:
        """Blocks whose latest row says done, rows still in memory included."""
        with self._lock:
            return self._codes.blocks_of(_DONE)

    def failed(self) -> dict[int, str]:
        """The error of each block whose latest row says failed."""
        with self._lock:
            return {block: self._errors[block] for block in self._codes.where(_FAILED).tolist()}

    def to_do(self, total: int, *, failed_too: bool = False) -> Iterator[int]:
        """Blocks below `total` that are missing, ascending; nobody holds a list of them.

        Args:
          total: number of blocks.
          failed_too: those that were given up as well.
        """
        return self._codes.without({_DONE} if failed_too else {_DONE, _FAILED}, total)

    def rows(self) -> Iterator[LedgerRow]:
        """Every row in the order of writing, those in memory last."""
        with self._lock:
            buffered = list(self._buffer)
        yield from all_rows(self._folder)
        yield from buffered

    def checksums(self) -> Iterator[tuple[int, str]]:
        """(block, checksum) of each done block that has one, ascending."""
        with self._lock:
            self.flush()
            parts = list(self._parts)
        if not parts:
            return
        table = latest_of(list(read_parts(parts, ("block", "checksum"))))
        for batch in table.to_batches(max_chunksize=65_536):
            for block, checksum in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                if checksum and self._codes[block] == _DONE:
                    yield block, checksum

    # Writing

    def append(self, row: LedgerRow) -> None:
        """Record one attempt; call it only after the block's voxels were written.

        Raises:
          LeaseLostError: another driver has the output now.
          ValueError: the ledger is closed.
          OSError: a part that is due cannot be written; its rows stay in memory for the next try.
        """
        self.check_driver()
        with self._lock:
            if self._closed:
                raise ValueError(f"{self._folder} is closed: block {row.block} would be lost. Open the ledger again.")
            self._buffer.append(row)
            self._codes.set(row.block, CODES[row.status])
            if row.status == "failed":
                self._errors[row.block] = row.error
            if len(self._buffer) >= self._flush_rows:
                self.flush()
            elif self._timer is None:
                self._start_timer()

    def check_driver(self) -> None:
        """Make sure that this driver was not replaced, as far as it has heard; cheap.

        Raises:
          LeaseLostError: it was.
        """
        self._lease.raise_if_lost()

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
                part = new_part(self._folder, 1 + max((p.last for p in self._parts), default=-1))
                write_new(part.place, encode_rows(self._buffer))
                self._parts.append(part)
                self._sizes.append(len(self._buffer))
                self._buffer.clear()
                self._merge()

    def close(self) -> None:
        """Write what is in memory; further rows are refused.

        Raises:
          LeaseLostError: another driver has the output now.
          OSError: the last part cannot be written.
        """
        with self._lock:
            self._closed = True
            try:
                self.flush()
            finally:
                if self._lease_is_own:
                    self._lease.release()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except LeaseLostError:
            if not isinstance(error, LeaseLostError):  # else it is being told already
                raise

    def _load(self) -> None:
        """Take in the rows of all parts: column by column, as there may be millions."""
        for table in read_parts(self._parts, ("block", "status", "error")):
            self._sizes.append(table.num_rows)
            blocks, codes = table["block"].to_numpy(), status_codes(table)
            self._codes.set_many(blocks, codes)
            failed = np.flatnonzero(codes == _FAILED)
            self._errors.update(zip(blocks[failed].tolist(), table["error"].take(failed).to_pylist(), strict=True))
        for part in merged_parts(self._folder):  # left by a kill
            remove_file(part.place)
        self._merge()

    def _merge(self) -> None:
        """Make few of many small parts. What goes wrong changes nothing, and is tried again after the next flush."""
        run = run_to_merge(self._sizes)
        if not run:
            return
        merged, size = self._parts[-run:], sum(self._sizes[-run:])
        try:
            part = write_merged(self._folder, merged)
        except (OSError, ValueError) as error:
            _LOG.warning("%s: %d parts could not be merged, and stay as they are: %s", self._folder, run, error)
            return
        self._parts[-run:], self._sizes[-run:] = [part], [size]
        self._lease.check()  # a successor may be reading them
        _remove(merged)

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
        except LeaseLostError as error:
            _LOG.error("%s", error)  # the driver hears it from `append` or `check_driver`
        except OSError:
            _LOG.exception("%s: a part could not be written; its rows are kept for the next try", self._folder)
            with self._lock:
                if self._buffer and not self._closed:
                    self._start_timer()


def _remove(parts: Sequence[Part]) -> None:
    for part in parts:
        try:
            remove_file(part.place)
        except OSError as error:  # nobody reads it any more: the next driver removes it
            _LOG.warning("%s could not be removed: %s", part.place, error)


def read_rows(output: Place | str, *, stage: str | None = None) -> Iterator[LedgerRow]:
    """Every durable row of an output's ledger, in the order of writing; none where there is no ledger.

    Raises:
      ValueError: a part is corrupt.
    """
    return all_rows(stage_folder(output, stage))
