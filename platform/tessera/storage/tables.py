"""Tables of numbers in one Parquet file each: edges between labels, contacts between fragments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tessera.storage.locations import Place
from tessera.storage.objects import read_bytes, write_bytes

Columns = dict[str, NDArray[Any]]
_REQUESTS = 8


def write_table(place: Place, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write columns of one length, whole or not at all.

    Args:
      place: of the file; its folder is there.
      columns: name -> numbers, (rows,), or (rows, width) for several numbers a row.

    Raises:
      OSError: the disk is full, the folder missing, or the store refuses.
    """
    sink = pa.BufferOutputStream()
    table = pa.table({name: _arrow(column) for name, column in columns.items()})
    pq.write_table(table, sink, compression="zstd")
    write_bytes(place, bytes(sink.getvalue()))


def read_table(place: Place, names: Sequence[str]) -> Columns:
    """Columns that `write_table` wrote, by name.

    Raises:
      FileNotFoundError: it is not there.
      ValueError: it is damaged, or has other columns.
    """
    try:
        data = read_bytes(place)
    except FileNotFoundError:
        raise FileNotFoundError(f"{place} is missing: say --recheck true to compute it again.") from None
    try:
        # Not `read_table`: it imports the machinery of datasets, for seconds.
        table = pq.ParquetFile(pa.BufferReader(data)).read(columns=list(names))
        return {name: _numpy(table[name].combine_chunks()) for name in names}
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{place} is damaged ({error}): say --recheck true to compute it again.") from error


def read_tables(places: Sequence[Place], names: Sequence[str]) -> Iterator[Columns]:
    """The same of many files, in order; a few are read at once, as each is a request in an object store."""
    with ThreadPoolExecutor(_REQUESTS) as pool:
        for first in range(0, len(places), _REQUESTS):
            yield from pool.map(lambda place: read_table(place, names), places[first : first + _REQUESTS])


def _arrow(column: NDArray[Any]) -> Any:
    if column.ndim == 1:
        return pa.array(column)
    return pa.FixedSizeListArray.from_arrays(pa.array(column.ravel()), column.shape[1])


def _numpy(column: Any) -> NDArray[Any]:
    if pa.types.is_fixed_size_list(column.type):
        flat: NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(column), column.type.list_size)
    numbers: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return numbers
