"""A volume once it is open: boxes of voxels in, boxes of voxels out, and only whole shards written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.sync import sync

from tessera.geometry.boxes import Box
from tessera.storage.layouts import Layout
from tessera.storage.locations import Place
from tessera.storage.objects import told
from tessera.storage.ome import Level


@dataclass(frozen=True)
class Volume:
    """One array of voxels with its axes, voxel size and `tessera` attributes; pickles, and reopens where it lands.

    `place` is what it was opened from. `axes` is ("z", "y", "x") or ("c", "z", "y", "x"). `voxel_size_nm` is z, y, x,
    or None where nobody says. `attributes` is a copy of the `tessera` attribute as it was on opening. `levels` are the
    image's resolutions from fine to coarse, of which number `level` is open; a plain array is its only one.
    """

    place: Place
    array: zarr.Array[Any] = field(repr=False, compare=False)
    axes: tuple[str, ...]
    voxel_size_nm: tuple[float, float, float] | None
    attributes: Mapping[str, Any] = field(default_factory=dict, repr=False)
    writable: bool = False
    levels: tuple[Level, ...] = field(default=(Level("", None),), repr=False)
    level: int = 0

    @property
    def url(self) -> str:
        """The path or URL as text, for messages, attributes and lineage."""
        return str(self.place)

    @property
    def translation_nm(self) -> tuple[float, float, float] | None:
        """The centre of voxel 0, z, y, x; None at the origin, or where nobody says."""
        return self.levels[self.level].translation_nm

    @property
    def corner_nm(self) -> tuple[float, float, float] | None:
        """Where voxel 0 begins, z, y, x; None where nobody says how large voxels are.

        Counted from the corner of the finest level: there voxel i of an untranslated volume reaches from i to i + 1
        times its size, although NGFF says where its centre lies, which is half a voxel less.
        """
        finest, own = self.levels[0].voxel_size_nm or self.voxel_size_nm, self.voxel_size_nm
        if own is None or finest is None:
            return None
        at = self.translation_nm or (0.0, 0.0, 0.0)
        z, y, x = (t + (f - s) / 2 for t, f, s in zip(at, finest, own, strict=True))
        return z, y, x

    @property
    def stored(self) -> Volume:
        """The volume whose chunks lie in the store: this one, unless it is read at another voxel size."""
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent on each of `axes`, voxels."""
        return tuple(int(n) for n in self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Voxel type in native byte order."""
        return np.dtype(self.array.dtype).newbyteorder("=")

    @property
    def chunk(self) -> tuple[int, ...]:
        """What one read fetches, voxels."""
        return tuple(int(n) for n in self.array.chunks)

    @property
    def shard(self) -> tuple[int, ...]:
        """What one write owns, voxels: the shard, or the chunk where the array is not sharded."""
        return tuple(int(n) for n in self.array.shards or self.array.chunks)

    @property
    def zarr_format(self) -> int:
        """2 (OME-Zarr 0.4) or 3 (0.5)."""
        return int(self.array.metadata.zarr_format)

    @property
    def layout(self) -> Layout:
        """Chunk and shard together."""
        return Layout(self.chunk, self.shard)

    @property
    def invalid_sections(self) -> frozenset[int]:
        """Sections (z) that are missing or blank; read from the `invalid_sections` attribute.

        The attribute counts the finest level's sections; one of a coarser level is invalid if one it was made of is.
        """
        merged = self._sections_merged()
        return frozenset(int(z) // merged for z in self.attributes.get("invalid_sections", ()))

    def _sections_merged(self) -> int:
        """How many sections of the finest level one of this level stands for."""
        finest, own = self.levels[0].voxel_size_nm, self.levels[self.level].voxel_size_nm
        return 1 if finest is None or own is None else max(1, round(own[0] / finest[0]))

    def read(self, box: Box) -> NDArray[Any]:
        """A copy of the voxels in a box that lies inside the volume.

        Args:
          box: one interval per axis of the volume.

        Returns:
          `dtype`, of the box's shape; zeros where nothing was ever written.

        Raises:
          ValueError: the box has other axes or leaves the volume.
        """
        self._check_inside(box)
        with told(self.place):
            return np.array(self.array[box.slices], dtype=self.dtype)

    def section(self, z: int) -> NDArray[Any]:
        """A copy of one section of a z, y, x volume: `dtype`, (y, x)."""
        section: NDArray[Any] = self.read(Box((z, 0, 0), (z + 1, *self.shape[1:])))[0]
        return section

    def write(self, box: Box, data: NDArray[Any]) -> None:
        """Write whole shards.

        Args:
          box: starts at multiples of the shard; stops at multiples too, or at the volume's far edge.
          data: `dtype`, of the box's shape.

        Raises:
          ValueError: the box is not whole shards, the data do not fit it, or the volume was opened for reading.
        """
        self._check_writable(box)
        if data.shape != box.shape or data.dtype != self.dtype:
            raise ValueError(
                f"data of shape {data.shape} and dtype {data.dtype} for box {box} of {self.url}: they would be "
                f"broadcast or cast silently. Give shape {box.shape} and dtype {self.dtype}."
            )
        with told(self.place):
            try:
                self.array[box.slices] = data
            except OSError:
                raise
            except Exception:
                # Zarr reads a shard that the volume's far edge cuts before it writes it. What is there may be torn,
                # decoders raise whatever they like then, and none of it is to be kept.
                self.erase(box)
                self.array[box.slices] = data

    def erase(self, box: Box) -> None:
        """Make whole shards zeros by deleting them: what writing zeros comes to, without comparing each voxel with 0.

        Args:
          box: as for `write`.

        Raises:
          ValueError: the box is not whole shards, or the volume was opened for reading.
        """
        self._check_writable(box)
        spans = (range(a // s, -(-b // s)) for a, b, s in zip(box.start, box.stop, self.shard, strict=True))
        with told(self.place):
            for position in product(*spans):
                sync((self.array.store_path / self.array.metadata.encode_chunk_key(position)).delete())

    def _check_writable(self, box: Box) -> None:
        self._check_inside(box)
        if not self.writable:
            raise ValueError(f"{self.url} was opened for reading: use open_volume(path, writable=True) to write to it.")
        if not self.layout.is_aligned(box, self.shape):
            raise ValueError(
                f"box {box} is not whole shards of {self.url} (shard {self.shard}, shape {self.shape}): a partial "
                "shard write reads, changes and rewrites the shard without a lock, and loses another task's data. "
                f"Write {self._nearest(box)} instead."
            )

    def _nearest(self, box: Box) -> Box:
        """The legal box around this one; the shard at its start where it is empty."""
        wanted = box if box.size else Box(box.start, tuple(a + 1 for a in box.start)).clipped(Box.whole(self.shape))
        return self.layout.aligned(wanted, self.shape)

    def _check_inside(self, box: Box) -> None:
        if box.ndim != len(self.shape) or not Box.whole(self.shape).contains(box):
            raise ValueError(
                f"box {box} for {self.url} with axes {', '.join(self.axes)} and shape {self.shape}: it needs one "
                f"interval per axis inside {Box.whole(self.shape)}. Clip it, and mirror what lies outside."
            )
