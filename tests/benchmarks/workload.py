"""The standard workload of batch inference, in any size, and a bare loop of the same model over it.

32 filters, depth 4, valid, untrained; 4 x 4096 x 4096 uint8 in 16 blocks of 4 x 1024 x 1024, chunks in zstd-1. A
smaller extent has fewer of the same blocks. Grey values are smoothed noise, which zstd packs about as well as EM.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from tessera.geometry.blocks import BlockGrid
from tessera.geometry.boxes import Box
from tessera.images.normalise import Normalisation
from tessera.model.bundle import Contract
from tessera.model.spec import UnetSpec
from tessera.settings.predict import PredictSettings
from tessera.storage.ledger import read_rows
from tessera.storage.volumes import create_volume

NETWORK = UnetSpec(filters=32, depth=4, dropout=0.0)
RULE = Normalisation("global", 128.0, 30.0)
VOXEL_SIZE_NM = (50.0, 4.0, 4.0)


@dataclass(frozen=True)
class Workload:
    """What is predicted.

    Attributes:
      sections: extent on z.
      extent: on y and x.
      block: voxels per task, z, y, x.
      network: the model's.
    """

    sections: int = 4
    extent: int = 4096
    block: tuple[int, int, int] = (4, 1024, 1024)
    network: UnetSpec = NETWORK

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the volume."""
        return (self.sections, self.extent, self.extent)

    @property
    def contract(self) -> Contract:
        """Of its model."""
        return Contract(self.network, RULE, "uint8", VOXEL_SIZE_NM, threshold=0.5)

    def __str__(self) -> str:
        sizes = ["x".join(map(str, one)) for one in (self.shape, self.block)]
        return f"{sizes[0]} uint8 in {len(BlockGrid(self.shape, self.block))} blocks of {sizes[1]}, " + (
            f"{self.network.filters} filters"
        )


def asked_for(description: str, usual: Workload, arguments: Sequence[str] | None = None) -> Workload:
    """The workload, of the size that the command line says."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--extent", type=int, default=usual.extent, help="y and x of the volume, voxels")
    parser.add_argument("--sections", type=int, default=usual.sections, help="z of the volume and of a block")
    parser.add_argument("--block", type=int, default=usual.block[1], help="y and x of a block, voxels")
    parser.add_argument("--filters", type=int, default=usual.network.filters, help="of the network")
    said = parser.parse_args(arguments)
    network = replace(usual.network, filters=said.filters)
    return Workload(said.sections, said.extent, (said.sections, said.block, said.block), network)


def grey(shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Smoothed noise, section by section."""
    rng = np.random.default_rng(seed)
    made = np.empty(shape, np.uint8)
    for section in made:
        section[...] = np.clip(128 + 180 * gaussian_filter(rng.standard_normal(shape[1:], np.float32), 2.0), 0, 255)
    return made


def put_volume(home: Path, work: Workload) -> Path:
    """The raw volume, in shards like the blocks."""
    path = home / "volumes" / "raw.zarr"
    shard = tuple(min(b, n) for b, n in zip(work.block, work.shape, strict=True))
    chunk = (1, min(256, shard[1]), min(256, shard[2]))
    attributes = {"complete": True, "invalid_sections": []}
    made = create_volume(
        path, work.shape, np.uint8, voxel_size_nm=VOXEL_SIZE_NM, chunk=chunk, shard=shard, attributes=attributes
    )
    for index, box in BlockGrid(work.shape, shard).boxes():
        made.write(box, grey(box.shape, index))
    return path


def put_bundle(home: Path, work: Workload) -> Path:
    """An untrained model of the workload's network."""
    from tessera.model.bundle import save_bundle
    from tessera.model.unet import build_unet

    folder = home / "bundle"
    save_bundle(folder, build_unet(work.network, seed=1), work.contract)
    return folder


def prediction(home: Path, work: Workload, name: str, **more: Any) -> PredictSettings:
    """Settings that predict the whole workload."""
    block, chunk = work.block, (1, min(256, work.block[1]), min(256, work.block[2]))
    places = (str(home / "volumes" / "raw.zarr"), str(home / "bundle"), str(home / f"{name}.zarr"))
    # The noise of one block does not go on in the next: an audit would find the seams of the raw volume.
    return PredictSettings(*places, block=block, shard=block, chunk=chunk, audit=False, **more)


def steady_voxels_per_second(output: Path) -> float:
    """Of a finished job with one worker: from its first block's end to its last one's."""
    ended = sorted(row.finished_at for row in read_rows(output) if row.status == "done")
    blocks = sorted(row.bytes for row in read_rows(output) if row.status == "done")
    if len(ended) < 3 or blocks[0] != blocks[-1]:
        raise RuntimeError(f"{len(ended)} blocks of {set(blocks)} bytes: a steady state needs 3 equal ones at least.")
    return blocks[0] * (len(ended) - 1) / (ended[-1] - ended[0])


class BareLoop:
    """The same model over a volume in memory, tile by tile: no store, no ledger, no Ray.

    Args:
      bundle: the model.
      raw: uint8, z, y, x.
      contract: the model's.
    """

    def __init__(self, bundle: Path, raw: NDArray[np.uint8], contract: Contract) -> None:
        from tessera.model.predictor import load_predictor

        self._predict, _ = load_predictor(bundle)
        arithmetic = contract.network.arithmetic
        self._halo, self._crop = arithmetic.halo[1], arithmetic.crop[1]
        pad = ((0, 0), (self._halo, self._halo), (self._halo, self._halo))
        self._image = np.pad(contract.normalisation.apply(raw), pad, mode="reflect")
        self._out = np.empty(raw.shape, np.float32)

    def voxels_per_second(self, tile: int, tiles: int) -> float:
        """Over some tiles of so many useful voxels a side, from the first on, round and round."""
        corners = _corners(self._out.shape, tile)
        begun = time.perf_counter()
        for _, (z, y, x) in zip(range(tiles), corners, strict=False):
            seen = self._image[z : z + 1, y : y + tile + 2 * self._halo, x : x + tile + 2 * self._halo, np.newaxis]
            got = self._predict(seen)[..., 0]
            self._out[z, y : y + tile, x : x + tile] = got[0, self._crop :, self._crop :][:tile, :tile]
        return tiles * tile**2 / (time.perf_counter() - begun)


def _corners(shape: tuple[int, ...], tile: int) -> Iterator[tuple[int, int, int]]:
    while True:
        for z in range(shape[0]):
            for y in range(0, shape[1], tile):
                yield from ((z, y, x) for x in range(0, shape[2], tile))


def raw_of(home: Path) -> NDArray[np.uint8]:
    """The raw volume in memory."""
    from tessera.storage.volumes import open_volume

    volume = open_volume(home / "volumes" / "raw.zarr")
    return volume.read(Box.whole(volume.shape))


@contextmanager
def quiet() -> Iterator[None]:
    """Jobs' progress lines are no part of a benchmark's output."""
    import logging

    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def say(text: str) -> None:
    """A line for whoever waits."""
    print(text, file=sys.stderr, flush=True)
