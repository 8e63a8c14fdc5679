"""Ledger rows, and how a Parquet file holds them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

Status = Literal["done", "failed", "missing"]
CODES: dict[str, int] = {"done": 1, "failed": 2, "missing": 3}
"""Of each status, in memory."""


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """What became of one block: `block` is its linear index in the grid; `detail` is a JSON object as text.

    It is done, was given up, or is missing again: its voxels turned out not to be those that were recorded.

    Seconds are wall time; `finished_at` is seconds since 1970, UTC; `bytes` counts voxels written, before compression.
    """

    block: int
    status: Status
    attempt: int = 1
    bytes: int = 0
    checksum: str = ""
    read_seconds: float = 0.0
    compute_seconds: float = 0.0
    write_seconds: float = 0.0
    error: str = ""
    detail: str = "{}"
    finished_at: float = 0.0

    def __post_init__(self) -> None:
        if self.status not in CODES:
            raise ValueError(f"status {self.status!r} of block {self.block}: a block is 'done', 'failed' or 'missing'.")
        if self.block < 0 or self.attempt < 1:
            raise ValueError(
                f"block {self.block}, attempt {self.attempt}: blocks count from 0 and attempts from 1; a block of no "
                "grid could never be resumed."
            )
        _check_detail(self.detail, self.block)

    @property
    def values(self) -> dict[str, Any]:
        """`detail` as a dictionary."""
        decoded: dict[str, Any] = json.loads(self.detail)
        return decoded


def _check_detail(detail: str, block: int) -> None:
    try:
        decoded = json.loads(detail)
    except ValueError:
        decoded = None
    if not isinstance(decoded, dict):
        raise ValueError(
            f"detail {detail!r} of block {block} is no JSON object: give text such as '{{\"labels\": 12}}'."
        )


_ARROW = {"int": pa.int64(), "str": pa.string(), "Status": pa.string(), "float": pa.float64()}
_SCHEMA = pa.schema([pa.field(f.name, _ARROW[str(f.type)], nullable=False) for f in fields(LedgerRow)])
COLUMNS: tuple[str, ...] = tuple(_SCHEMA.names)


def encode_rows(rows: Sequence[LedgerRow]) -> bytes:
    """Rows as one Parquet file."""
    columns = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
    return encode_tables([pa.table(columns, schema=_SCHEMA)])


def encode_tables(tables: Iterable[Any]) -> bytes:
    """Tables of rows, one after the other, as one Parquet file; one of them is held at a time."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, _SCHEMA, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
    return bytes(sink.getvalue())


def decode_rows(data: bytes, columns: Sequence[str] = COLUMNS) -> Any:
    """A file's rows as an Arrow table of some of the fields of `LedgerRow`.

    Raises:
      ValueError, OSError, KeyError: the file is truncated, corrupt, or has other columns.
    """
    # Not `read_table`: it imports the machinery of datasets, for seconds.
    table = pq.ParquetFile(pa.BufferReader(data)).read(columns=list(columns))
    return table.select(list(columns)).cast(pa.schema([_SCHEMA.field(name) for name in columns]))


def status_codes(table: Any) -> NDArray[np.uint8]:
    """The code of each row's status: (rows,) uint8. As Python strings, a million of them take seconds."""
    places = pc.index_in(table["status"], value_set=pa.array(list(CODES)))
    codes: NDArray[np.uint8] = np.array(list(CODES.values()), np.uint8)[places.to_numpy()]
    return codes
