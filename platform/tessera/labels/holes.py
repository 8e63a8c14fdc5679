"""Holes in objects: background that one object alone encloses, whatever blocks the volume is cut into.

    1 1 1 1 | 1 1        Background is put together over blocks as objects are: by its faces. Each block says of each
    1 . . . | . 1        piece of background which ids it touches, as the least and the greatest of them, and whether it
    1 1 1 . | 1 1        is open: minima, maxima and "any" add up. A hole is closed, and its least id is its greatest.

Background touches by faces of voxels alone, as is customary beside objects that touch by corners, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.labels.components import LocalLabels, label_block
from tessera.labels.merge import Ids
from tessera.labels.seams import Connectivity, Offset

_MOST = np.iinfo(np.uint64).max


@dataclass(frozen=True, slots=True, eq=False)
class Surroundings:
    """What pieces of background border on; entry 0 stands for no piece.

    Attributes:
      least: uint64, (pieces + 1,), the least id that touches it; the largest uint64 where none does.
      most: uint64, (pieces + 1,), the greatest; 0 where none does.
      open: bool, (pieces + 1,), whether it reaches the volume's edge, or voxels of which nothing is known.
      voxels: int64, (pieces + 1,).
    """

    least: Ids
    most: Ids
    open: NDArray[np.bool_]
    voxels: NDArray[np.int64]

    @property
    def fill(self) -> Ids:
        """Uint64, (pieces + 1,): the id of the object whose hole a piece is, 0 where it is none."""
        hole = ~self.open & (self.least == self.most)
        hole[0] = False
        return np.where(hole, self.least, np.uint64(0))

    def of(self, pieces: NDArray[np.unsignedinteger[Any]]) -> Surroundings:
        """The same of some pieces alone, numbered anew from 1 in this order."""
        at = np.append(0, pieces).astype(np.intp)
        return Surroundings(self.least[at], self.most[at], self.open[at], self.voxels[at])

    def gather_into(self, larger: Surroundings, names: NDArray[np.integer[Any]]) -> None:
        """Add what these pieces border on to the larger pieces that they are parts of, in place.

        Args:
          larger: of the larger pieces.
          names: integer, (pieces + 1,), of each piece the larger one's number; 0 of entry 0.
        """
        at = names.astype(np.intp)
        np.minimum.at(larger.least, at, self.least)
        np.maximum.at(larger.most, at, self.most)
        np.logical_or.at(larger.open, at, self.open)
        np.add.at(larger.voxels, at, self.voxels)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Plain arrays by name, for a file."""
        return {name: getattr(self, name) for name in ("least", "most", "open", "voxels")}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Surroundings:
        """What `to_arrays` gave, among others."""
        return cls(*(arrays[name] for name in ("least", "most", "open", "voxels")))


def no_surroundings(pieces: int) -> Surroundings:
    """Of so many pieces, of which nothing is known yet."""
    n = pieces + 1
    return Surroundings(np.full(n, _MOST), np.zeros(n, np.uint64), np.zeros(n, bool), np.zeros(n, np.int64))


def background_connectivity(*, per_section: bool) -> Connectivity:
    """Which voxels of background touch: 4 neighbours in a section, or 6 in the volume."""
    return Connectivity.SECTION_4 if per_section else Connectivity.VOLUME_6


def background_pieces(labels: NDArray[Any], connectivity: Connectivity) -> tuple[LocalLabels, int]:
    """The connected pieces of a block's background, numbered from 1, and their number."""
    return label_block(labels == 0, connectivity)


def surroundings_of(
    pieces: LocalLabels,
    count: int,
    labels: NDArray[Any],
    valid: NDArray[np.bool_],
    box: Box,
    seen: Box,
    shape: Sequence[int],
    connectivity: Connectivity,
) -> Surroundings:
    """What the pieces of one block border on, in it and across its faces.

    Args:
      pieces: uint32, (z, y, x), of the block.
      count: how many there are.
      labels: unsigned integer, of `seen`.
      valid: bool, of the block: where something is known.
      box: the block.
      seen: the block and a voxel around it, clipped to the volume.
      shape: of the volume.
      connectivity: of the background; per section nothing is asked across z.
    """
    found = no_surroundings(count)
    core = box.relative_to(seen.start)
    for step in connectivity.offsets:
        there = core.shifted(step).clipped(Box.whole(labels.shape))
        here = there.shifted([-s for s in step]).relative_to(core.start)
        piece, other = pieces[here.slices], labels[there.slices].astype(np.uint64)
        meets = (piece > 0) & (other > 0)
        np.minimum.at(found.least, piece[meets], other[meets])
        np.maximum.at(found.most, piece[meets], other[meets])
    for plane in _edge_planes(box, shape, connectivity):
        found.open[np.unique(pieces[plane])] = True
    found.open[np.unique(pieces[~valid])] = True
    found.voxels[:] = np.bincount(pieces.ravel(), minlength=count + 1)
    found.open[0] = False
    found.voxels[0] = 0
    return found


def _edge_planes(box: Box, shape: Sequence[int], connectivity: Connectivity) -> Iterator[tuple[slice, ...]]:
    """The planes of a block that lie at the volume's edge; a section has no edge on z."""
    whole: Offset = (0, 0, 0)
    for axis in range(1 if connectivity.per_section else 0, len(whole)):
        for at_edge, end in ((box.start[axis] == 0, slice(0, 1)), (box.stop[axis] == shape[axis], slice(-1, None))):
            if at_edge:
                yield tuple(end if k == axis else slice(None) for k in range(len(whole)))


def cleared(labels: NDArray[Any], removed: Ids) -> NDArray[Any]:
    """Labels without the objects of some ids, which become background.

    Args:
      labels: unsigned integer, any shape.
      removed: uint64, ids in any order.

    >>> cleared(np.array([[4, 4, 0, 9]], np.uint16), np.array([9, 70000], np.uint64)).tolist()
    [[4, 4, 0, 0]]
    """
    if len(removed) == 0 or labels.size == 0:
        return labels
    flat = labels.ravel()
    begins = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])  # runs: far fewer than voxels
    gone = np.isin(flat[begins].astype(np.uint64), removed)
    inside = np.repeat(gone, np.diff(begins, append=flat.size)).reshape(labels.shape)
    return np.where(inside, labels.dtype.type(0), labels)
