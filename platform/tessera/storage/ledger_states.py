"""What a ledger says of an output, read without opening it: by whoever looks on while a driver writes.

Columns and not rows: a ledger of a million blocks is read in a second or two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.blocks import BlockGrid
from tessera.storage.ledger_job import JOB, ledger_path, read_job, stage_folder
from tessera.storage.ledger_parts import latest_of, read_snapshot
from tessera.storage.locations import Place
from tessera.storage.objects import child_names, exists, is_file

_COLUMNS = ("block", "status", "attempt", "error", "finished_at")


@dataclass(frozen=True)
class BlockStates:
    """The latest row of every block that is done or was given up; arrays of one length, in the order of blocks.

    Attributes:
      grid: all blocks of the pass.
      workflow: what makes the output.
      block: (n,) int64, linear index in the grid.
      done: (n,) bool; the others were given up.
      attempt: (n,) int64, tries that the block took.
      finished_at: (n,) float64, seconds since 1970, UTC.
      errors: of each block that was given up.
    """

    grid: BlockGrid
    workflow: str
    block: NDArray[np.int64]
    done: NDArray[np.bool_]
    attempt: NDArray[np.int64]
    finished_at: NDArray[np.float64]
    errors: dict[int, str]

    def voxels(self, chosen: NDArray[np.bool_]) -> int:
        """Voxels of the chosen blocks; those at the volume's far edges are smaller."""
        extents = [
            np.minimum(n, size - n * np.arange(count))
            for n, size, count in zip(self.grid.block, self.grid.shape, self.grid.counts, strict=True)
        ]
        places = np.unravel_index(self.block[chosen], self.grid.counts)
        sizes = np.stack([extent[place] for extent, place in zip(extents, places, strict=True)])
        return int(sizes.prod(axis=0).sum())


def stages_of(output: Place | str) -> list[str | None]:
    """The passes over an output that were begun; None is the one that has no name.

    Raises:
      FileNotFoundError: there is no ledger.
    """
    ledger = ledger_path(output)
    names = child_names(ledger) if exists(ledger) else []
    stages: list[str | None] = [name for name in sorted(names) if is_file(ledger / name / JOB)]
    stages += [None] if JOB in names else []
    if not stages:
        raise FileNotFoundError(
            f"{ledger} is not there, or holds no job: no tessera command has begun {output}. Give the output of "
            "ingest, predict, segment or pyramid."
        )
    return stages


def read_states(output: Place | str, stage: str | None = None) -> BlockStates:
    """Read a pass's ledger as it is on disk now; what a driver still holds in memory is missing.

    Raises:
      FileNotFoundError: there is no such ledger.
      ValueError: it is corrupt, or of another version.
    """
    facts = read_job(output, stage=stage)["description"]
    newest = _newest(stage_folder(output, stage))
    blocks, done = newest["block"], newest["status"] == "done"
    errors = dict(zip(blocks[~done].tolist(), newest["error"][~done].tolist(), strict=True))
    grid = _grid(ledger_path(output), facts)
    return BlockStates(grid, facts["workflow"], blocks, done, newest["attempt"], newest["finished_at"], errors)


def _newest(folder: Place) -> dict[str, NDArray[Any]]:
    """The columns of every block's latest row, but of those that are missing again."""
    tables = read_snapshot(folder, _COLUMNS)
    if not tables:
        kinds = {"block": np.int64, "attempt": np.int64, "finished_at": np.float64}
        return {name: np.empty(0, kinds.get(name, object)) for name in _COLUMNS}
    table = latest_of(tables)
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in _COLUMNS}
    counts = columns["status"] != "missing"
    return {name: values[counts] for name, values in columns.items()}


def _grid(ledger: Place, facts: dict[str, Any]) -> BlockGrid:
    try:
        return BlockGrid(tuple(facts["shape"]), tuple(facts["block"]))
    except KeyError as error:
        raise ValueError(
            f"{ledger} does not say its {error}: another version of tessera began it, and how many blocks there are is "
            "unknown. Look at the job with that version, or begin again with `--overwrite true`."
        ) from None
