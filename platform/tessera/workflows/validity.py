"""What of a raw volume is predicted, decided voxel by voxel before any block runs.

    region  and  chosen, present sections  and  stored chunks  and  mask  -->  valid

    block without a stored chunk, a valid section or a mask chunk --> its ledger row at once: nothing is read or sent
    any other block                                               --> its worker asks voxel by voxel

A block's voxels are never looked at to decide: a black voxel that is stored is valid. What the network reads around a
valid voxel does not depend on what is valid, so that a mask changes no probability inside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tessera.geometry.blocks import BlockGrid
from tessera.geometry.boxes import Box
from tessera.images.validity import ChunkMap, Spans, valid_in
from tessera.settings.predict import PredictSettings
from tessera.settings.sections import name_sections, parse_sections
from tessera.storage.stored import digest_of_stored, stored_chunks
from tessera.storage.validity import ReadValid, open_validity, validity_attribute
from tessera.storage.volumes import Volume
from tessera.workflows.masks import MaskSource, find_mask


@dataclass(frozen=True)
class Validity:
    """What of a region is valid: all that a worker needs, as plain values.

    Attributes:
      roi: the region, in the raw volume's voxels.
      unchosen: sections of the region that were not selected.
      bare: sections of which no chunk is stored in the region.
      absent: sections that the raw volume marks invalid.
      stored: which chunks are stored; None where all are, but those of bare sections.
      mask: None where there is none.
      facts: what the ledger's key holds of it.
    """

    roi: Box
    unchosen: frozenset[int] = frozenset()
    bare: frozenset[int] = frozenset()
    absent: frozenset[int] = frozenset()
    stored: ChunkMap | None = field(default=None, repr=False)
    mask: MaskSource | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def invalid(self) -> frozenset[int]:
        """Sections without a valid voxel in the region, in the raw volume's numbering."""
        return self.unchosen | self.bare | self.absent

    @property
    def is_kept(self) -> bool:
        """Whether validity is more than whole sections: the output then keeps it as an array."""
        return self.stored is not None or self.mask is not None

    @property
    def attributes(self) -> dict[str, Any]:
        """What the output says of it."""
        inside = range(self.roi.start[0], self.roi.stop[0])
        sections = sorted(z - self.roi.start[0] for z in self.invalid if z in inside)
        return {"invalid_sections": sections} | ({"validity": validity_attribute()} if self.is_kept else {})

    def reader(self) -> ReadValid:
        """Opens the mask; gives what tells which voxels of a box of the raw volume, inside the region, are valid."""
        read_mask = None if self.mask is None else self.mask.reader()

        def read(box: Box) -> NDArray[np.bool_]:
            valid = valid_in(box, self.invalid, self.stored)
            if read_mask is not None and valid.any():
                valid &= read_mask(box)
            return valid

        return read

    def candidates(self, grid: BlockGrid) -> NDArray[np.bool_]:
        """Of each block of the output's grid, whether it may hold a valid voxel: told without reading any.

        Returns:
          Bool, of the grid's counts.
        """
        spans: list[list[tuple[int, int]]] = [
            [(a + start, b + start) for a, b in (axis.bounds(i) for i in range(axis.count))]
            for axis, start in zip(grid.axes, self.roi.start, strict=True)
        ]
        rows = np.array([any(z not in self.invalid for z in range(a, b)) for a, b in spans[0]])
        found = np.broadcast_to(rows[:, np.newaxis, np.newaxis], grid.counts)
        if self.stored is not None:
            found = found & self.stored.any_in(spans)
        if self.mask is not None and self.mask.stored is not None:
            inner: list[Spans] = [
                [axis.span(a, b) for a, b in own] for axis, own in zip(self.mask.axes, spans, strict=True)
            ]
            found = found & self.mask.stored.any_in(inner)
        return found


def plan_validity(settings: PredictSettings, volume: Volume, roi: Box) -> Validity:
    """Find what is valid, and make sure that something is; no voxel of the raw volume is read.

    Raises:
      FileNotFoundError, OSError: the mask is not there, or a store cannot be read.
      ValueError: the mask does not fit, a section is outside, or nothing is valid.
    """
    sections = range(roi.start[0], roi.stop[0])
    facts: dict[str, Any] = {}
    unchosen: frozenset[int] = frozenset()
    if settings.sections is not None:
        chosen = parse_sections(settings.sections, volume.shape[0])
        unchosen = frozenset(sections) - set(chosen)
        facts["sections"] = name_sections(chosen)
    absent = volume.invalid_sections & set(sections)
    _check_sections(settings, sections, unchosen | absent, volume)
    stored = _stored(volume, roi)
    bare = stored.sections_without(sections)
    if not stored.complete:
        facts["stored_chunks"] = digest_of_stored(volume, stored)
    mask = None if settings.mask is None else find_mask(settings, volume)
    if mask is not None:
        facts["mask"] = mask.facts
    kept = None if stored.without_sections(bare | unchosen | absent, sections) else stored
    validity = Validity(roi, unchosen, bare, absent, kept, mask, facts)
    _check_something_is_left(validity, volume, len(bare) == len(sections))
    return validity


def _stored(volume: Volume, roi: Box) -> ChunkMap:
    """Which chunks are stored, in the voxels of the volume that is read.

    Raises:
      ValueError: it is resampled, and not all that it is made from is stored.
    """
    if volume.stored is volume:
        return stored_chunks(volume, roi)
    whole = Box.whole(volume.stored.shape)
    found = stored_chunks(volume.stored, whole)
    if not found.without_sections(volume.stored.invalid_sections, range(whole.stop[0])):
        raise ValueError(
            f"{volume.url} does not store all of its chunks, and is to be resampled: voxels made partly from what is "
            "missing would pass for valid. Resample it into a volume of its own first, or predict it at its own size."
        )
    return ChunkMap(volume.shape, (0, 0, 0), np.ones((1, 1, 1), bool))


def _check_sections(settings: PredictSettings, sections: range, invalid: frozenset[int], volume: Volume) -> None:
    if len(invalid) < len(sections):
        return
    why = f"sections={settings.sections!r} selects" if settings.sections is not None else "it has"
    raise ValueError(
        f"no section of {volume.url} is left to predict: {why} none that is valid among {sections.start} to "
        f"{sections.stop - 1} of the region. Choose others, or leave --sections out."
    )


def _check_something_is_left(validity: Validity, volume: Volume, nothing_stored: bool) -> None:
    """Refuse a job whose every voxel would come out as 0; reads the mask until its first valid voxel.

    Raises:
      ValueError: says which of the conditions leaves nothing.
    """
    if nothing_stored:
        raise ValueError(
            f"{volume.url} stores no chunk of {validity.roi}: every voxel would read as zero, and come out invalid. "
            "Is the copy complete, and the region the right one?"
        )
    blocks = BlockGrid(validity.roi.shape, _looked_at(validity, volume))
    hopeful = np.flatnonzero(validity.candidates(blocks))
    if validity.mask is None and len(hopeful):
        return
    read = validity.reader()
    if not any(read(blocks.box(int(i)).shifted(validity.roi.start)).any() for i in hopeful):
        mask = "" if validity.mask is None else f", where the mask {validity.mask.place} is not 0"
        raise ValueError(
            f"no voxel of {validity.roi} of {volume.url} is valid: none lies in a stored chunk of a valid section"
            f"{mask}. The output would be all 0. Give another region, other sections or another mask."
        )


def _looked_at(validity: Validity, volume: Volume) -> tuple[int, ...]:
    """Boxes to look for a valid voxel in: of about 16 million, whole shards where those are no larger."""
    return tuple(min(max(s, 16), limit) for s, limit in zip(volume.shard[-3:], (64, 512, 512), strict=True))


# Blocks


@dataclass(frozen=True)
class BlockOutput:
    """An output as its workers write it: voxels, and where it is kept their validity.

    Attributes:
      volume: the voxels, to write.
      valid_of: of a box of the raw volume.
      mask: the output's validity, to write; None where it is not kept.
    """

    volume: Volume
    valid_of: ReadValid
    mask: Volume | None

    @classmethod
    def open(cls, volume: Volume, validity: Validity) -> BlockOutput:
        """Open what belongs to an output that was claimed."""
        return cls(volume, validity.reader(), open_validity(volume, writable=True) if validity.is_kept else None)

    def write(self, box: Box, voxels: NDArray[Any], valid: NDArray[np.bool_]) -> None:
        """Write a block, in the output's voxels, and its validity."""
        self.volume.write(box, voxels)
        if self.mask is not None:
            self.mask.write(box, valid.view(np.uint8))


def skipping(validity: Validity, grid: BlockGrid, dtype: DTypeLike) -> Callable[[int], dict[str, Any] | None]:
    """What gives the ledger's row of a block that surely holds no valid voxel, and None for any other."""
    candidates, itemsize = validity.candidates(grid).reshape(-1), np.dtype(dtype).itemsize

    def settled(index: int) -> dict[str, Any] | None:
        return None if candidates[index] else skipped_row(grid.box(index).size * itemsize)

    return settled


def skipped_row(size_bytes: int) -> dict[str, Any]:
    """The ledger's row of a block that was skipped: its shards are absent, and read as zeros."""
    return {"bytes": 0, "checksum": _checksum_of_zeros(size_bytes), "detail": {"skipped": True}}


@lru_cache(maxsize=64)  # blocks at the far edges are smaller: a few sizes in all
def _checksum_of_zeros(size_bytes: int) -> str:
    digest, piece = hashlib.blake2b(digest_size=8), bytes(2**20)
    for _ in range(size_bytes // len(piece)):
        digest.update(piece)
    digest.update(bytes(size_bytes % len(piece)))
    return digest.hexdigest()
