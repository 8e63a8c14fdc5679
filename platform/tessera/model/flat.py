"""Flat tiles: what the network makes of input without any structure is computed once, and then remembered.

Resin around a sample, and what was never written, fills tiles with one grey value. The network's output for it is not
one value: it repeats with the pooling period, and differs from model to model. So it is taken from the network itself,
for a whole tile of the same shape at the same phase: the voxels are those of running it again.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from tessera.model.predictor import Predict

# Of outputs that are kept: a volume that is empty in part has a few background greys, and tiles of a megabyte or two.
_MOST_BYTES = 2**26


def remembering_flat(predict: Predict, most_bytes: int = _MOST_BYTES) -> Predict:
    """`predict`, which answers for input that is flat from memory, once it has seen it.

    Input is flat where each plane, a section or a neighbouring section as a channel, holds one value after
    normalisation. Its output depends on those values and the shape alone, both of which make the key.

    Args:
      predict: see `Predict`; it must give the same output for the same input.
      most_bytes: of outputs that are kept, the least recently used going first; the latest one always is.
    """
    kept: OrderedDict[tuple[tuple[int, ...], bytes], NDArray[np.float32]] = OrderedDict()
    lock = Lock()

    def predict_remembering(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        if not is_flat(tiles):
            return predict(tiles)
        key = (tiles.shape, tiles[:, 0, 0].tobytes())
        with lock:
            found = kept.get(key)
            if found is not None:
                kept.move_to_end(key)
                return found
        computed = predict(tiles)
        computed.flags.writeable = False  # one output serves many callers
        with lock:
            kept[key] = computed
            while len(kept) > 1 and sum(output.nbytes for output in kept.values()) > most_bytes:
                kept.popitem(last=False)
        return computed

    return predict_remembering


def is_flat(tiles: NDArray[np.float32]) -> bool:
    """Whether every plane of (batch, y, x, channels) holds one value.

    >>> is_flat(np.ones((1, 4, 4, 1), np.float32)), is_flat(np.eye(4, dtype=np.float32)[None, :, :, None])
    (True, False)
    """
    corner = tiles[:, :1, :1]
    # Tissue is told by its first row.
    return bool((tiles[:, 0, :] == corner[:, 0]).all() and (tiles == corner).all())
