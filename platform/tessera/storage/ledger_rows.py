"""Ledger rows, and the immutable Parquet parts that hold them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from tessera.storage.locations import Place
from tessera.storage.objects import child_names, read_bytes

_PART = re.compile(r"part-(\d{8})-[0-9a-f]{8}\.parquet")

Status = Literal["done", "failed"]


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One attempt at one block. `block` is its linear index in the grid; `detail` is a JSON object as text.

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
        if self.status not in ("done", "failed"):
            raise ValueError(f"status {self.status!r} of block {self.block}: a block is 'done' or 'failed'.")
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


def list_parts(folder: Place) -> list[Place]:
    """Parts in the order of writing; temporary files of a killed writer are not parts."""
    return [folder / name for name in child_names(folder) if _PART.fullmatch(name)]


def part_number(part: Place) -> int:
    """The place of a part in the order of writing."""
    return int(part.name.split("-")[1])


def encode_rows(rows: Sequence[LedgerRow]) -> bytes:
    """Rows as one Parquet file."""
    sink = pa.BufferOutputStream()
    columns = {name: [getattr(row, name) for row in rows] for name in _SCHEMA.names}
    pq.write_table(pa.table(columns, schema=_SCHEMA), sink, compression="zstd")
    return bytes(sink.getvalue())


def read_part(part: Place) -> Any:
    """One part as an Arrow table with a column per field of `LedgerRow`.

    Raises:
      ValueError: the file is truncated, corrupt, or has other columns.
    """
    try:
        table = pq.read_table(pa.BufferReader(read_bytes(part)))
        return table.select(_SCHEMA.names).cast(_SCHEMA)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{part} is no readable ledger part ({error}): which blocks it records is unknown. Delete this file; its "
            "blocks will run again."
        ) from error


def part_rows(part: Place) -> Iterator[LedgerRow]:
    """The rows of one part, in the order of writing."""
    for row in read_part(part).to_pylist():
        yield LedgerRow(**row)
