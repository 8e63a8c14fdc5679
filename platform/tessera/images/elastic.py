"""Elastic deformation: one random, smooth field that moves an image, its labels and its weights together.

Where image and labels were warped by two draws, the network learned from labels that belong to other pixels. Here a
field is drawn once, becomes one sampling map, and `warp_together` is the only function that applies it.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, floor
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tessera.geometry.boxes import Box
from tessera.images.mirror import read_mirrored

Interpolation = Literal["cubic", "linear"]

_FLAGS = {"nearest": cv2.INTER_NEAREST, "linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}

# OpenCV's cubic kernel reads one voxel before a position and two after it.
_KERNEL_REACH = 2

# OpenCV 5.0 refuses cubic interpolation of more channels, and rounds linear positions to 1/32 px for them.
_CHANNELS_AT_ONCE = 4


def elastic_field(
    rng: np.random.Generator, shape: tuple[int, int], sigma_px: float, grid: tuple[int, int] = (3, 3)
) -> NDArray[np.float32]:
    """Draw a smooth displacement field: Gaussian vectors on a coarse grid, interpolated bicubically to every pixel.

    The grid's outer nodes lie on the outermost pixels; between nodes runs the interpolating cubic spline, so the field
    takes the drawn vectors at the nodes. Vertical and horizontal displacements are independent. The field folds
    over itself where neighbouring nodes differ by more than their distance: keep `sigma_px` below about a fifth of it.

    Args:
      rng: the source of the draw.
      shape: extent (y, x) of the field, pixels.
      sigma_px: standard deviation of each node's displacement along each axis, pixels.
      grid: number of nodes (y, x), at least 2 each.

    Returns:
      float32, (2, y, x), pixels, ordered (dy, dx).

    Raises:
      ValueError: sigma is negative or not finite, or the grid has fewer than 2 nodes on an axis.

    Source: Ronneberger, Fischer and Brox 2015, section 3.1 (3 x 3 grid, sigma 10 px, bicubic).
    """
    if not (np.isfinite(sigma_px) and sigma_px >= 0):
        raise ValueError(f"sigma_px={sigma_px} is not a displacement: give 0 or more pixels, such as 10.")
    if min(grid) < 2:
        raise ValueError(
            f"grid={grid} has too few nodes to interpolate between: give at least 2 per axis, as in (3, 3)."
        )
    nodes = rng.normal(0.0, sigma_px, size=(2, *grid)).astype(np.float32)
    rows, columns = _spline_basis(shape[0], grid[0]), _spline_basis(shape[1], grid[1])
    field: NDArray[np.float32] = np.matmul(rows, nodes) @ columns.T
    return field


def grid_for_spacing(shape: tuple[int, int], spacing_px: float) -> tuple[int, int]:
    """The elastic grid whose nodes lie about `spacing_px` apart on a crop of this shape.

    For crops much larger than the paper's, where three nodes an axis would bend almost nothing.

    >>> grid_for_spacing((1024, 512), 256)
    (5, 3)

    Args:
      shape: extent (y, x) of the crop, pixels.
      spacing_px: wanted distance between nodes, pixels.

    Returns:
      Number of nodes (y, x), at least 2 each.

    Raises:
      ValueError: the spacing is not a positive, finite number.
    """
    if not (np.isfinite(spacing_px) and spacing_px > 0):
        raise ValueError(
            f"spacing_px={spacing_px} is no distance between grid nodes: give a positive one, such as 128."
        )
    return max(2, round(shape[0] / spacing_px) + 1), max(2, round(shape[1] / spacing_px) + 1)


def warp_together(
    image: NDArray[np.float32],
    labels: NDArray[np.uint8],
    weights: NDArray[np.float32],
    sampling_map: NDArray[np.float32],
    interpolation: Interpolation = "cubic",
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32]]:
    """Sample an image, its labels and its weights at the same positions, mirrored at the section's true edge.

    Weights are interpolated linearly, but a pixel whose label comes from a pixel of weight 0 (unknown) keeps weight 0:
    its label means nothing, whatever its neighbours weigh. Cubic positions are rounded to 1/32 px by OpenCV.

    Args:
      image: float32, (y, x) or (y, x, c).
      labels: uint8, (y, x).
      weights: float32, (y, x); 0 marks pixels of unknown label.
      sampling_map: float32, (2, h, w), pixels of the section, ordered (y, x): where each pixel of the result is read.
      interpolation: of the image; `cubic` keeps thin membranes sharper, `linear` never overshoots.

    Returns:
      image float32, (h, w) or (h, w, c); labels uint8, (h, w), values a subset of those given; weights float32, (h, w).

    Raises:
      ValueError: shapes or dtypes disagree with the above.

    Source: Ronneberger, Fischer and Brox 2015, section 3.1.
    """
    check_triple(image, labels, weights)
    box = _covering_box(sampling_map)
    image, labels, weights = _window(image, box), _window(labels, box), _window(weights, box)
    local = sampling_map - np.asarray(box.start, np.float32)[:, None, None]
    warped = _sample(weights, local, "linear")
    if weights.min() <= 0:
        warped *= _sample((weights > 0).view(np.uint8), local, "nearest")
    # Labels are names, not amounts: nearest keeps every value one that existed.
    return _sample_channels(image, local, interpolation), _sample(labels, local, "nearest"), warped


def check_triple(image: NDArray[Any], labels: NDArray[Any], weights: NDArray[Any]) -> None:
    """Check that an image, its labels and its weights cover the same section in the promised dtypes.

    Args:
      image: float32, (y, x) or (y, x, c).
      labels: uint8, (y, x).
      weights: float32, (y, x).

    Raises:
      ValueError: they do not; the message names what arrived.
    """
    for name, array, dtype in (
        ("image", image, np.float32),
        ("labels", labels, np.uint8),
        ("weights", weights, np.float32),
    ):
        if array.dtype != dtype:
            raise ValueError(
                f"{name} are {array.dtype} where {np.dtype(dtype)} is promised: another dtype would be rounded or "
                f"refused on the way. Convert with .astype(np.{np.dtype(dtype)})."
            )
    if image.ndim not in (2, 3) or not image.shape[:2] == labels.shape == weights.shape:
        raise ValueError(
            f"image {image.shape}, labels {labels.shape} and weights {weights.shape} do not cover one section: give "
            "(y, x) or (y, x, c), (y, x) and (y, x) of the same extent, or pixels would learn from others' labels."
        )


@lru_cache(maxsize=64)
def _spline_basis(extent: int, nodes: int) -> NDArray[np.float32]:
    """The float32 matrix (extent, nodes) that interpolates a row of node values to every pixel by a cubic spline."""
    positions = np.linspace(0, nodes - 1, extent)
    columns = [ndimage.map_coordinates(unit, [positions], order=3, mode="mirror") for unit in np.eye(nodes)]
    basis: NDArray[np.float32] = np.stack(columns, axis=1).astype(np.float32)
    basis.setflags(write=False)
    return basis


def _covering_box(sampling_map: NDArray[np.float32]) -> Box:
    """The box of pixels that sampling by this map touches, the kernel's reach included.

    Mirrored into a window first, because OpenCV 5.0's cubic remap is wrong where a position reflects more than once
    (and never returns for an axis of one pixel), and refuses sections of 32,767 pixels and more.
    """
    low = [floor(float(axis.min())) - _KERNEL_REACH for axis in sampling_map]
    high = [ceil(float(axis.max())) + _KERNEL_REACH + 1 for axis in sampling_map]
    return Box(tuple(low), tuple(high))


def _window(array: NDArray[Any], box: Box) -> NDArray[Any]:
    return read_mirrored(lambda inside: array[inside.slices], array.shape[: box.ndim], box)


def _sample(array: NDArray[Any], positions: NDArray[np.float32], interpolation: str) -> NDArray[Any]:
    y, x = positions
    sampled: NDArray[Any] = cv2.remap(array, x, y, _FLAGS[interpolation], borderMode=cv2.BORDER_REFLECT_101)
    return sampled


def _sample_channels(
    image: NDArray[np.float32], positions: NDArray[np.float32], interpolation: str
) -> NDArray[np.float32]:
    if image.ndim == 2:
        return _sample(image, positions, interpolation)
    firsts = range(0, image.shape[2], _CHANNELS_AT_ONCE)
    groups = [_sample(image[..., c : c + _CHANNELS_AT_ONCE], positions, interpolation) for c in firsts]
    # OpenCV drops the channel axis of a single channel.
    return np.concatenate([group.reshape(*positions.shape[1:], -1) for group in groups], axis=2)
