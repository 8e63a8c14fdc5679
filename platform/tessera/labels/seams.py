"""Which components of neighbouring blocks are one component, told from the blocks' faces alone.

Blocks are labelled alone, on any machine, in any order; each leaves behind only its boundary planes. Two blocks that
touch by a face, an edge or a corner are joined voxel pair by voxel pair, exactly as the whole array would have been:

    a a a | b b        the pair (a, b) at distance (0, +1) is an edge of SECTION_4,
    a . . | . b        at distance (+1, +1) one of SECTION_8 ...
    ------+----
    . c . | d .        ... and so is (a, d), whose blocks touch by an edge alone: diagonal blocks count too.

2D-per-section and 3D connectivity differ in one list of voxel offsets and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.unsignedinteger[Any]]
Edges = NDArray[np.uint64]
Offset = tuple[int, int, int]

_AXES = "zyx"
_SIDES = {-1: "low", +1: "high"}


class Connectivity(Enum):
    """Which voxels touch: 4 or 8 neighbours within a section, or 6, 18 or 26 in the volume.

    >>> Connectivity("section-4").offsets
    ((0, -1, 0), (0, 0, -1), (0, 0, 1), (0, 1, 0))
    """

    SECTION_4 = "section-4"
    SECTION_8 = "section-8"
    VOLUME_6 = "volume-6"
    VOLUME_18 = "volume-18"
    VOLUME_26 = "volume-26"

    @property
    def per_section(self) -> bool:
        """Whether sections stay apart: nothing ever joins across z."""
        return self in (Connectivity.SECTION_4, Connectivity.SECTION_8)

    @property
    def neighbours(self) -> int:
        """How many neighbours a voxel has."""
        return int(self.value.split("-")[1])

    @property
    def offsets(self) -> tuple[Offset, ...]:
        """The (z, y, x) steps from a voxel to each of its neighbours."""
        reach = {4: 1, 8: 2, 6: 1, 18: 2, 26: 3}[self.neighbours]  # how many axes one step may change
        steps = product((0,) if self.per_section else (-1, 0, 1), (-1, 0, 1), (-1, 0, 1))
        return tuple(step for step in steps if 1 <= sum(map(abs, step)) <= reach)


@dataclass(frozen=True, slots=True, eq=False)
class Faces:
    """The boundary planes of one block's labels; where the block is one voxel thick, low and high are the same.

    Attributes:
      shape: the block's extent in voxels, (z, y, x).
      planes: the plane at each (axis, side), side -1 low and +1 high: unsigned integer, over the two axes left.
    """

    shape: tuple[int, int, int]
    planes: Mapping[tuple[int, int], Labels]

    @property
    def nbytes(self) -> int:
        """Bytes of all planes together."""
        return sum(plane.nbytes for plane in self.planes.values())

    def rim(self) -> Labels:
        """The local ids that touch a face: ascending, without background. Only they can be one with other blocks'."""
        ids = [np.unique(plane) for plane in self.planes.values()]
        found: Labels = np.unique(np.concatenate(ids)) if ids else np.empty(0, np.uint32)
        return found[found > 0]

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Plain arrays to write anywhere: `shape` (int64, (3,)) and `z_low` ... `x_high`."""
        named = {f"{_AXES[axis]}_{_SIDES[side]}": plane for (axis, side), plane in self.planes.items()}
        return {"shape": np.array(self.shape, np.int64), **named}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Faces:
        """The faces that `to_arrays` wrote; names it does not know are left alone.

        Raises:
          ValueError: `shape` is missing, or a plane has another shape than the block's.
        """
        if "shape" not in arrays:
            raise ValueError(
                f"arrays named {sorted(arrays)} have no 'shape': without the block's extent its planes cannot be "
                f"checked. Hand over all that to_arrays() gave."
            )
        z, y, x = (int(n) for n in arrays["shape"])
        keys = ((axis, side) for axis in range(3) for side in _SIDES)
        named = {key: f"{_AXES[key[0]]}_{_SIDES[key[1]]}" for key in keys}
        planes = {key: arrays[name] for key, name in named.items() if name in arrays}
        for (axis, side), plane in planes.items():
            expected = tuple(n for k, n in enumerate((z, y, x)) if k != axis)
            if plane.shape != expected:
                raise ValueError(
                    f"plane {named[axis, side]} has shape {plane.shape}, but a block of {(z, y, x)} has {expected} "
                    f"there: it belongs to another block, and its ids would join strangers. Rerun that block."
                )
        return cls((z, y, x), planes)


def faces_of(labels: Labels, connectivity: Connectivity | None = None) -> Faces:
    """Copy the boundary planes of a block, so that the block itself can be let go.

    Args:
      labels: unsigned integer, (z, y, x), 0 = background.
      connectivity: where it is per section, the z planes are left out (nothing joins there): a block of 64x1024x1024
        uint32 then keeps 1 MiB instead of 9. By default all six planes are kept.

    Raises:
      ValueError: labels are not three-dimensional, not unsigned integers, or empty.
    """
    _check_labels(labels)
    z, y, x = labels.shape
    axes = (1, 2) if connectivity is not None and connectivity.per_section else (0, 1, 2)
    ends = {-1: 0, +1: -1}
    # Copies: a view would keep the whole block alive.
    planes = {(axis, side): np.take(labels, end, axis=axis) for axis in axes for side, end in ends.items()}
    return Faces((z, y, x), planes)


def neighbour_offsets(connectivity: Connectivity) -> tuple[Offset, ...]:
    """The steps, in blocks, to the neighbours that must be checked: one of each opposite two, so each pair once.

    Blocks touch across the same steps as voxels do: a voxel's step leaves its block on some of its axes, and those axes
    alone are again a step of the connectivity.

    >>> neighbour_offsets(Connectivity.SECTION_8)
    ((0, 0, 1), (0, 1, -1), (0, 1, 0), (0, 1, 1))
    """
    return tuple(step for step in connectivity.offsets if step > (0, 0, 0))


def seam_edges(faces_a: Faces, faces_b: Faces, offset: Offset, connectivity: Connectivity) -> Edges:
    """The pairs of local ids that touch across the seam between two neighbouring blocks.

    Args:
      faces_a: a block's faces.
      faces_b: the faces of the block at `offset` from it.
      offset: grid step (z, y, x) from a to b, each -1, 0 or 1.
      connectivity: what touching means. Blocks at a step that it does not know share no edge.

    Returns:
      uint64, (n, 2), unique rows (id in a, id in b) in ascending order, none with background.

    Raises:
      ValueError: no such neighbour, or blocks whose extents differ along their seam.
    """
    _check_seam(faces_a, faces_b, offset)
    if offset not in connectivity.offsets:
        return np.empty((0, 2), np.uint64)
    a = _rim(faces_a, offset)
    b = _rim(faces_b, (-offset[0], -offset[1], -offset[2]))
    return _unique_rows([_touching(a, b, slide) for slide in _slides(offset, connectivity)])


def _slides(offset: Offset, connectivity: Connectivity) -> Iterator[Offset]:
    """Voxel steps that cross the seam, with the crossing itself taken out: how b's rim shifts against a's."""
    for step in connectivity.offsets:
        if all(o in (0, s) for s, o in zip(step, offset, strict=True)):
            z, y, x = (0 if o else s for s, o in zip(step, offset, strict=True))
            yield z, y, x


def _rim(faces: Faces, offset: Offset) -> Labels:
    """The block's voxels that touch its neighbour at `offset`: a plane, line or voxel, with all three axes kept."""
    axis = next(k for k, step in enumerate(offset) if step)
    plane = faces.planes.get((axis, offset[axis]))
    if plane is None:
        raise ValueError(
            f"the {_AXES[axis]} plane was not kept for a block of {faces.shape}: these faces are those of a "
            f"per-section connectivity and cannot be joined across z. Try faces_of(labels) with all planes."
        )
    ends = {-1: slice(0, 1), 0: slice(None), 1: slice(-1, None)}
    return np.expand_dims(plane, axis)[tuple(ends[step] if k != axis else slice(None) for k, step in enumerate(offset))]


def _touching(a: Labels, b: Labels, slide: Offset) -> Edges:
    """uint64 rows (id in a, id in b) where both are foreground, with b's voxels taken `slide` further on."""
    ends = {-1: slice(None, -1), 0: slice(None), 1: slice(1, None)}
    from_a = a[tuple(ends[-step] for step in slide)].ravel()
    from_b = b[tuple(ends[step] for step in slide)].ravel()
    both = (from_a > 0) & (from_b > 0)
    return _without_runs(np.stack([from_a[both], from_b[both]], axis=1).astype(np.uint64))


def _without_runs(rows: Edges) -> Edges:
    """Rows without those that repeat the row before: a long contact becomes one row, and the sort after it cheap."""
    new = np.ones(len(rows), bool)
    new[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    return rows[new]


def _unique_rows(parts: list[Edges]) -> Edges:
    """All rows once, ascending."""
    rows = np.concatenate(parts)
    return _without_runs(rows[np.lexsort((rows[:, 1], rows[:, 0]))])


def _check_labels(labels: NDArray[Any]) -> None:
    if labels.ndim != 3:
        raise ValueError(
            f"labels have shape {labels.shape}: a block is (z, y, x), and faces of fewer axes would join the wrong "
            f"voxels. Try labels[np.newaxis] for one section."
        )
    if not np.issubdtype(labels.dtype, np.unsignedinteger):
        raise ValueError(
            f"labels are {labels.dtype}: ids are unsigned integers, and a negative or fractional one has no place in "
            f"the numbering. Try labels.astype('uint32')."
        )
    if labels.size == 0:
        raise ValueError(
            f"labels have shape {labels.shape}, without a voxel: an empty block has no faces and would part its "
            f"neighbours. Leave it out of the grid; the thinnest block is one voxel thick."
        )


def _check_seam(faces_a: Faces, faces_b: Faces, offset: Offset) -> None:
    if len(offset) != 3 or not any(offset) or any(step not in (-1, 0, 1) for step in offset):
        raise ValueError(
            f"offset={offset} is no step to a neighbouring block: each of z, y, x is -1, 0 or 1 and not all are 0, "
            f"for blocks further away do not touch. Try one of neighbour_offsets(connectivity)."
        )
    pairs = zip(offset, faces_a.shape, faces_b.shape, strict=True)
    if any(step == 0 and a != b for step, a, b in pairs):
        raise ValueError(
            f"blocks of {faces_a.shape} and {faces_b.shape} at offset {offset} differ along their seam: their voxels "
            f"cannot be paired. Blocks of one grid agree on every axis where the offset is 0."
        )
