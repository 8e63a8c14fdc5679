"""Out of memory: the tile is halved and the work goes on. Any tile gives the same voxels, so only speed is lost.

    network refuses a tile --> TileMemoryError --> the block again with half of it, and all later blocks of this worker

What a tile costs is known only to the machine it runs on: a planner estimates, others use the memory too.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]
T = TypeVar("T")

_log = logging.getLogger(__name__)


class TileMemoryError(MemoryError):
    """The network has not enough memory for a tile; a smaller one may pass."""


def telling_of_memory(predict: Predict) -> Predict:
    """`predict`, whose lack of memory, by whatever error it shows, is a `TileMemoryError`."""

    def predict_or_tell(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            return predict(tiles)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            # Without the cause: its traceback holds the arrays that memory is needed for.
            told = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        raise TileMemoryError(f"no memory for the network on {' x '.join(map(str, tiles.shape[:-1]))} voxels: {told}")

    return predict_or_tell


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, NumPy's or TensorFlow's."""
    if isinstance(error, MemoryError):
        return True
    # Not imported here: whoever did not use TensorFlow did not get its error.
    errors: Any = getattr(sys.modules.get("tensorflow"), "errors", None)
    return errors is not None and isinstance(error, errors.ResourceExhaustedError)


class TileMemory:
    """The tile that fits into a worker's memory: halved when memory runs out, for all blocks from then on.

    Safe to use from several threads.
    """

    def __init__(self, tile: Sequence[int], period: Sequence[int]) -> None:
        self._tile, self._period, self._lock = tuple(tile), tuple(period), threading.Lock()
        self.halvings = 0

    def fit(self, run: Callable[[tuple[int, ...]], T]) -> T:
        """`run(tile)`, and again with half of it for as long as memory runs out.

        Raises:
          TileMemoryError: there is none even for the smallest tile.
        """
        while True:
            halvings = self.halvings
            tile = halved(self._tile, self._period, halvings)
            try:
                return run(tile)
            except TileMemoryError as error:
                smaller = halved(self._tile, self._period, halvings + 1)
                if smaller == tile:
                    raise
                told = str(error)
            _log.warning("%s: the tile is halved from %s to %s, the voxels stay the same", told, tile, smaller)
            self.halve_to(halvings + 1)

    def halve_to(self, halvings: int) -> None:
        """Halve the tile so often, unless it was already."""
        with self._lock:
            self.halvings = max(self.halvings, halvings)


def halved(tile: Sequence[int], period: Sequence[int], times: int) -> tuple[int, ...]:
    """A tile halved some times, along z first, which costs no halo, then along the longer of y and x.

    >>> halved((2, 512, 512), (1, 16, 16), 1), halved((1, 512, 512), (1, 16, 16), 3)
    ((1, 512, 512), (1, 128, 256))

    Args:
      tile: the most useful voxels per pass, z, y, x.
      period: the network's; no axis gets shorter.
      times: at least 0; where nothing can be halved any more, the rest of them change nothing.
    """
    sides = list(tile)
    for _ in range(times):
        can = [axis for axis in range(3) if sides[axis] // 2 >= period[axis]]
        if not can:
            break
        axis = 0 if 0 in can else max(can, key=lambda axis: sides[axis])
        sides[axis] = sides[axis] // 2 // period[axis] * period[axis]
    return tuple(sides)
