"""Small named arrays in one file: block faces between the passes of a job."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.storage.locations import Place
from tessera.storage.objects import read_bytes, write_bytes


def save_arrays(path: Place, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write named arrays to a compressed .npz, whole or not at all.

    Raises:
      OSError: the disk is full or the folder missing.
    """
    buffer = BytesIO()
    np.savez_compressed(buffer, **dict(arrays))  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())


def load_arrays(path: Place) -> dict[str, NDArray[Any]]:
    """Read back what `save_arrays` wrote; never unpickles.

    Raises:
      FileNotFoundError: it is not there.
      ValueError: it is damaged.
    """
    try:
        with np.load(BytesIO(read_bytes(path)), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: say --recheck true to compute it again.") from None
    except Exception as error:  # zipfile and numpy raise half a dozen unrelated types for a damaged file
        raise ValueError(f"{path} is damaged ({error}): say --recheck true to compute it again.") from error
