"""Which fragments of two neighbouring blocks are one, by what both say of the voxels that both have seen.

Each block cuts its core with context around it, and keeps two planes at each face: its own last one, and the one beyond
it as it would cut it. Across a face, both blocks so have an opinion of the same two planes:

    block a:    ... own | beyond ...           a 3 3 3 3 | 3 3 7 7
    block b:    ... beyond | own ...           b 1 1 1 1 | 1 1 2 2        3 and 1: 6 of 6 voxels; 7 and 2: 2 of 2

Fragments that merely touch share no voxel, and are never joined. The more membrane there is where two overlap, the more
of them has to agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.labels.seams import Offset

Planes = Mapping[str, NDArray[Any]]
_AXES = "zyx"


@dataclass(frozen=True, slots=True)
class OverlapRule:
    """When two fragments are one.

    Attributes:
      share: of the voxels that either of two fragments has in the planes, how many both must have, where there is no
        membrane; in certain membrane, all of them.
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share}: a share above 0, at most 1, or touch alone would join. Try 0.5.")

    def joins(self, share: NDArray[np.float64], membrane: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether pairs that share so much, with so much membrane there, are one."""
        return share >= self.share + (1 - self.share) * membrane


def axes_of(per_section: bool) -> tuple[int, ...]:
    """Axes along which fragments of neighbouring blocks can be one."""
    return (1, 2) if per_section else (0, 1, 2)


def face_offsets(per_section: bool) -> tuple[Offset, ...]:
    """Grid steps to the neighbours that are looked at: a fragment that spans two blocks crosses a face on its way."""
    steps: tuple[Offset, ...] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    return tuple(steps[axis] for axis in axes_of(per_section))


def planes_of(
    labels: NDArray[np.uint32], core: tuple[slice, ...], membrane: NDArray[np.float32], *, per_section: bool
) -> dict[str, NDArray[Any]]:
    """What a block keeps of its faces.

    Args:
      labels: uint32, (z, y, x), the block with its context; 0 wherever a fragment has no voxel in the core.
      core: where the block lies in it.
      membrane: float32, as large: probability.
      per_section: leaves the z faces out.

    Returns:
      `y_low_own`, `y_low_beyond`, `y_low_membrane`, ...: the plane inside, the one beyond, and the membrane probability
      of both, float32, (2, ...), inside first. At the volume's edge, where nothing lies beyond, none of them.
    """
    kept: dict[str, NDArray[Any]] = {}
    for axis in axes_of(per_section):
        for side, inside, step in (("low", core[axis].start, -1), ("high", core[axis].stop - 1, 1)):
            if not 0 <= inside + step < labels.shape[axis]:
                continue
            own, beyond = (_plane(labels, core, axis, at) for at in (inside, inside + step))
            seen = np.stack([_plane(membrane, core, axis, at) for at in (inside, inside + step)])
            name = f"{_AXES[axis]}_{side}"
            kept |= {f"{name}_own": own, f"{name}_beyond": beyond, f"{name}_membrane": seen}
    return kept


def _plane(block: NDArray[Any], core: tuple[slice, ...], axis: int, at: int) -> NDArray[Any]:
    return block[tuple(at if k == axis else core[k] for k in range(3))].copy()


def rim_of(planes: Planes) -> NDArray[np.uint32]:
    """Local ids that any of the planes names: ascending, without background."""
    ids = [np.unique(plane) for name, plane in planes.items() if name.endswith(("_own", "_beyond"))]
    found = np.unique(np.concatenate(ids)) if ids else np.empty(0, np.uint32)
    return found[found > 0]


def overlap_edges(rule: OverlapRule, own: Planes, other: Planes, offset: Offset) -> NDArray[np.int64]:
    """Pairs of fragments that are one.

    Args:
      rule: when they are.
      own: planes of a block.
      other: planes of the block at `offset` from it.
      offset: one of `face_offsets`.

    Returns:
      int64, (n, 2): (local id in the block, local id in the other).

    Raises:
      ValueError: the planes do not fit each other.
    """
    axis = next(k for k, step in enumerate(offset) if step)
    low, high = f"{_AXES[axis]}_high", f"{_AXES[axis]}_low"
    a = np.stack([own[f"{low}_own"], own[f"{low}_beyond"]])
    b = np.stack([other[f"{high}_beyond"], other[f"{high}_own"]])
    if a.shape != b.shape:
        raise ValueError(
            f"planes of {a.shape[1:]} and {b.shape[1:]} at offset {offset}: their voxels cannot be paired. Take both "
            "from blocks of one grid."
        )
    return _agreeing(rule, a.ravel(), b.ravel(), np.asarray(own[f"{low}_membrane"]).ravel())


def _agreeing(rule: OverlapRule, a: NDArray[Any], b: NDArray[Any], membrane: NDArray[np.float32]) -> NDArray[np.int64]:
    both = (a > 0) & (b > 0)
    width = int(b.max(initial=0)) + 1
    keys, group, count = np.unique(a[both].astype(np.int64) * width + b[both], return_inverse=True, return_counts=True)
    pairs = np.stack([keys // width, keys % width], axis=1)
    size_a, size_b = np.bincount(a), np.bincount(b)
    share = count / (size_a[pairs[:, 0]] + size_b[pairs[:, 1]] - count)
    mean = np.bincount(group, weights=membrane[both], minlength=len(keys)) / count
    # In a plane that is all membrane and on which both agree, a mean may pass 1 by a rounding error.
    return pairs[rule.joins(share, np.minimum(mean, 1.0))]
