"""Fragments of cells: a seeded watershed on the distance to membranes, within sections or through the volume.

    membrane probability --> distance to the next membrane --> smoothed --> its maxima are seeds
    seeds --> flood downhill through cells, then up the membranes --> fragments that fill everything valid

Cells are cut into more pieces than there are on purpose: what lies between two pieces is weighed afterwards
(region_graph.py). Everything but the flood looks at a neighbourhood only, so that a block with enough context around it
finds the fragments that the whole volume has there.

Source: Beier et al. 2017, "Multicut brings automated neurite segmentation closer to human performance", supplement:
distance-transform watershed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from tessera.labels.components import label_block
from tessera.labels.seams import Connectivity

LocalLabels = NDArray[np.uint32]
Floats = NDArray[np.float32]

# Farther from the kernel's centre its weights are below 4e-5.
_GAUSSIAN_REACH = 4.0


@dataclass(frozen=True, slots=True)
class WatershedRule:
    """How fragments are cut.

    Attributes:
      membrane: probability from which on a voxel is membrane.
      per_section: whether every section is cut by itself.
      voxel_size: z, y, x, in any unit: distances are measured in it.
      smoothing: standard deviation of the Gaussian that distances are smoothed with, in that unit; more of it gives
        fewer, larger fragments.
    """

    membrane: float
    per_section: bool
    voxel_size: tuple[float, float, float]
    smoothing: float

    def __post_init__(self) -> None:
        if not 0 < self.membrane <= 1:
            raise ValueError(
                f"membrane={self.membrane}: a probability above 0, at most 1, or everything would be membrane. Try 0.5."
            )
        if not min(self.voxel_size) > 0 or not self.smoothing >= 0:
            raise ValueError(
                f"voxel_size={self.voxel_size} must be above 0 and smoothing={self.smoothing} at least 0: distances "
                "would have no meaning. Try (50, 4, 4) and 8."
            )

    @property
    def sigmas(self) -> tuple[float, float, float]:
        """The Gaussian in voxels, z, y, x."""
        z, y, x = (self.smoothing / size for size in self.voxel_size)
        return (0.0 if self.per_section else z), y, x


def fragments_of(membrane: Floats, valid: NDArray[np.bool_], rule: WatershedRule) -> LocalLabels:
    """Cut a block, with whatever context it has, into fragments.

    Args:
      membrane: float32, (z, y, x), probability in [0, 1].
      valid: bool, (z, y, x): the rest belongs to no fragment.
      rule: how.

    Returns:
      uint32, (z, y, x): 0 where not valid, and in what no seed reaches.

    Raises:
      ValueError: the arrays do not fit each other.
    """
    if membrane.ndim != 3 or membrane.shape != valid.shape:
        raise ValueError(
            f"membrane has shape {membrane.shape}, valid {valid.shape}: both are (z, y, x) and equal, or voxels would "
            "be left out by others' validity. Try np.ones(membrane.shape, bool)."
        )
    if not rule.per_section:
        return _cut(membrane, valid, rule)
    fragments = np.zeros(membrane.shape, np.uint32)
    total = 0
    for z in range(len(membrane)):
        section = slice(z, z + 1)
        own = _cut(membrane[section], valid[section], rule)
        np.add(own, np.uint32(total), out=fragments[section], where=own > 0)
        total += int(own.max(initial=0))
    return fragments


def _cut(membrane: Floats, valid: NDArray[np.bool_], rule: WatershedRule) -> LocalLabels:
    cell = (membrane < rule.membrane) & valid
    distance = smoothed_distance(cell, rule)
    seeds = _maxima(distance, cell)
    # Downhill within cells; membranes, which lie above all of them, are climbed by probability.
    height = np.where(cell, -distance, membrane)
    return np.asarray(watershed(height, seeds, connectivity=1, mask=valid), np.uint32)


def smoothed_distance(cell: NDArray[np.bool_], rule: WatershedRule) -> Floats:
    """How far each voxel of a cell is from the next that is none, smoothed; beyond the array there are none.

    Args:
      cell: bool, (z, y, x).
      rule: gives voxel size and smoothing.

    Returns:
      float32, (z, y, x), in the voxel size's unit; 0 or more.
    """
    if cell.all():  # nothing to be far from: one fragment
        return np.ones(cell.shape, np.float32)
    distance = ndimage.distance_transform_edt(cell, sampling=rule.voxel_size).astype(np.float32)
    return np.asarray(ndimage.gaussian_filter(distance, rule.sigmas, mode="nearest", truncate=_GAUSSIAN_REACH))


def _maxima(distance: Floats, cell: NDArray[np.bool_]) -> LocalLabels:
    """Voxels of cells that no neighbour is above, numbered; those that touch are one."""
    highest = ndimage.maximum_filter(distance, size=3, mode="nearest") == distance
    return label_block(highest & cell, Connectivity.VOLUME_26)[0]


def renumbered(labels: NDArray[Any]) -> tuple[LocalLabels, NDArray[Any]]:
    """Ids 1..n in the order of the first voxel, and the old id of each, that of background first.

    >>> new, old = renumbered(np.uint32([[[7, 7, 0, 3]]]))
    >>> new.tolist(), old.tolist()
    ([[[1, 1, 0, 2]]], [0, 7, 3])
    """
    ids, first, where = np.unique(labels, return_index=True, return_inverse=True)
    order = np.argsort(np.where(ids == 0, -1, first))
    old = ids[order] if len(ids) and ids[order[0]] == 0 else np.concatenate([[0], ids[order]]).astype(labels.dtype)
    names = np.empty(len(ids), np.uint32)
    names[order] = np.arange(len(ids)) + (0 if len(old) == len(ids) else 1)
    return names[where].reshape(labels.shape), old
