"""Tiny stacks of slices, written as TIFF and PNG."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from tessera.storage.stacks import SliceStack

STACK = np.random.default_rng(0).integers(0, 256, (5, 40, 60), dtype=np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (3, 8, 9, 3), dtype=np.uint8)


def whole(stack: SliceStack) -> NDArray[np.generic]:
    return np.stack([stack.read_section(z) for z in range(stack.shape[0])])


def write_folder(folder: Path, sections: NDArray[np.generic], suffix: str = "tif", first: int = 8) -> Path:
    folder.mkdir()
    for number, section in enumerate(sections, first):
        if suffix == "tif":
            tifffile.imwrite(folder / f"s{number}.tif", section)
        else:
            (folder / f"s{number}.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(section)))
    return folder


def paletted(path: Path, table: NDArray[np.uint8]) -> Path:
    indices = np.arange(16, dtype=np.uint8).reshape(4, 4)
    if path.suffix == ".tif":
        full = np.zeros((256, 3), np.uint16)
        full[:16] = table.astype(np.uint16) * 257
        tifffile.imwrite(path, indices, photometric="palette", colormap=full.T)
    else:
        image = Image.fromarray(indices).convert("P")
        image.putpalette(table.reshape(-1).tolist())
        image.save(path)
    return path
