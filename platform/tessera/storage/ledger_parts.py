"""The parts of a ledger: immutable files of rows, of which many small ones become few.

    part-00000007-1a2b3c4d.parquet             the rows of one flush; they are numbered in the order of writing
    part-00000000-00000031-5e6f7a8b.parquet    the rows of parts 0 to 31, merged: once it is there, it stands for them

It appears in one step, in a folder and in an object store alike, under a name of its own. A kill before that changes
nothing; after it, parts that are merged already are passed over by every reader, until the next driver removes them.
A merge keeps every row in its order, so that the history of a block stays readable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa

from tessera.storage.ledger_rows import COLUMNS, LedgerRow, decode_rows, encode_tables
from tessera.storage.locations import Place
from tessera.storage.objects import child_names, read_bytes, write_new

_PART = re.compile(r"part-(\d{8})(?:-(\d{8}))?-[0-9a-f]{8}\.parquet")
FAN = 32
"""Parts of about one size that become one."""
FULL_ROWS = FAN**3
"""A part of so many rows is merged no more: it would be rewritten again and again."""
_REQUESTS = 8
_LOOKS = 20


@dataclass(frozen=True, slots=True)
class Part:
    """One file of rows: those of flushes `first` to `last`."""

    place: Place
    first: int
    last: int

    @property
    def merged(self) -> bool:
        """Whether it stands for others."""
        return self.place.name.count("-") == 3


def part_of(place: Place) -> Part | None:
    """The part of this name; None where it names none, such as the temporary file of a killed writer."""
    found = _PART.fullmatch(place.name)
    return Part(place, int(found[1]), int(found[2] or found[1])) if found else None


def list_parts(folder: Place) -> list[Part]:
    """Parts in the order of writing, without those that a merge stands for."""
    return _sorted_out(folder)[0]


def merged_parts(folder: Place) -> list[Part]:
    """Parts that a merge stands for, and that a kill left there."""
    return _sorted_out(folder)[1]


def _sorted_out(folder: Place) -> tuple[list[Part], list[Part]]:
    found = filter(None, (part_of(folder / name) for name in child_names(folder)))
    live, covered, reach = [], [], -1
    # Whatever may hold a part's rows comes before it. Of two merges of the same parts the later name counts.
    for part in sorted(sorted(found, key=_name, reverse=True), key=lambda p: (p.first, -p.last, not p.merged)):
        if part.last <= reach:
            covered.append(part)
        else:
            live.append(part)
            reach = max(reach, part.last) if part.merged else reach
    return sorted(live, key=lambda part: (part.last, part.first, part.place.name)), covered


def _name(part: Part) -> str:
    return part.place.name


def new_part(folder: Place, first: int, last: int | None = None) -> Part:
    """A part of a name that was never used; it is not written yet."""
    numbers = f"{first:08d}" if last is None else f"{first:08d}-{last:08d}"
    return Part(folder / f"part-{numbers}-{os.urandom(4).hex()}.parquet", first, first if last is None else last)


# Reading


def read_part(part: Part, columns: Sequence[str] = COLUMNS) -> Any:
    """One part as an Arrow table with some of the fields of `LedgerRow` as columns.

    Raises:
      FileNotFoundError: it was merged, and removed, since it was listed.
      ValueError: the file is truncated, corrupt, or has other columns.
    """
    data = read_bytes(part.place)
    try:
        return decode_rows(data, columns)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{part.place} is no readable ledger part ({error}): which blocks it records is unknown. Delete this file; "
            "its blocks will run again."
        ) from error


def read_parts(parts: Sequence[Part], columns: Sequence[str] = COLUMNS) -> Iterator[Any]:
    """Their tables in order; a few are read at once, as each is a request where the ledger lies in an object store."""
    with ThreadPoolExecutor(_REQUESTS) as pool:
        for first in range(0, len(parts), _REQUESTS):
            yield from pool.map(lambda part: read_part(part, columns), parts[first : first + _REQUESTS])


def read_snapshot(folder: Place, columns: Sequence[str]) -> list[Any]:
    """The tables of all parts as they were at one moment, for whoever looks on while a driver writes and merges.

    Raises:
      ValueError: a part is corrupt.
      OSError: parts come and go faster than they can be read.
    """
    for _ in range(_LOOKS):
        parts = list_parts(folder)
        try:
            tables = list(read_parts(parts, columns))
        except FileNotFoundError:
            continue
        # A listing takes a while: a merge that appeared behind its back may have removed what it had yet to come to.
        last = parts[-1].last if parts else -1
        if all(part in parts or part.first > last for part in list_parts(folder)):
            return tables
    raise OSError(f"{folder}: its parts were merged {_LOOKS} times while they were read. Look again.")


def latest_of(tables: Sequence[Any]) -> Any:
    """Of every block the latest row, as one table, by block; `block` is among the columns."""
    table = pa.concat_tables(tables)
    _, from_end = np.unique(table["block"].to_numpy()[::-1], return_index=True)
    return table.take(table.num_rows - 1 - from_end)


def part_rows(part: Part) -> Iterator[LedgerRow]:
    """The rows of one part, in the order of writing."""
    for row in read_part(part).to_pylist():
        yield LedgerRow(**row)


def all_rows(folder: Place) -> Iterator[LedgerRow]:
    """Every row in the order of writing, whatever is merged meanwhile.

    Raises:
      FileNotFoundError: a part is listed but not there.
      ValueError: a part is corrupt.
    """
    told = 0
    for look in range(_LOOKS):
        try:
            rows = chain.from_iterable(map(part_rows, list_parts(folder)))
            for row in islice(rows, told, None):  # merging keeps their order: what was told is what comes first
                told += 1
                yield row
            return
        except FileNotFoundError:
            if look == _LOOKS - 1:
                raise


# Merging


def run_to_merge(rows: Sequence[int]) -> int:
    """How many of the last parts should become one; 0 for none.

    They do once there are `FAN` in a row below a size, and the largest has at most half of their rows: one that is
    nearly full would be rewritten for every few rows more.

    >>> run_to_merge([5] * 31), run_to_merge([9000] + [5] * 32), run_to_merge([FULL_ROWS] * 99)
    (0, 32, 0)

    Args:
      rows: of each part, in the order of writing.
    """
    below = FAN
    while below <= FULL_ROWS:
        run = next((n for n, count in enumerate(reversed(rows)) if count >= below), len(rows))
        if run >= FAN and 2 * max(rows[-run:]) <= sum(rows[-run:]):
            return run
        below *= FAN
    return 0


def write_merged(folder: Place, parts: Sequence[Part]) -> Part:
    """Write the part that stands for these from now on; removing them is left to the caller.

    Raises:
      OSError, ValueError: one of them cannot be read, or the merge not be written; nothing has changed then.
    """
    merged = new_part(folder, min(part.first for part in parts), max(part.last for part in parts))
    write_new(merged.place, encode_tables(read_parts(parts)))
    return merged
