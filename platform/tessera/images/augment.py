"""Training crops: everything random about a sample is drawn here, once, from a generator the caller hands in.

Image, labels and weights go through one sampling map, so they cannot drift apart; what touches intensities touches the
image alone. A sample is a function of (seed, index): whichever worker makes it, and after whichever restart, it is the
same.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, isfinite, log1p, radians, sin
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from tessera.images.elastic import check_triple, elastic_field, grid_for_spacing, warp_together

Triple = tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32]]


@dataclass(frozen=True)
class Augmentation:
    """What may vary between two samples of the same place; every field at its default is off.

    The intensity terms are relative to the crop's own mean, standard deviation and range, so they act alike on raw and
    on normalised images.

    Args:
      elastic_sigma_px: standard deviation of the elastic grid's displacements, pixels (10 in the paper).
      elastic_grid: nodes (y, x) of the elastic grid over a crop.
      elastic_spacing_px: distance between the nodes, pixels; takes the place of `elastic_grid` where above 0.
      rotation_degrees: free rotation by up to this much either way; 180 is any angle.
      flips: mirror each axis every other time.
      rotate90: rotate by a multiple of 90 degrees.
      contrast: factor on the distance from the mean, drawn from 1 - contrast to 1 + contrast.
      brightness: offset of up to this many standard deviations either way.
      gamma: exponent on the intensities scaled to [0, 1], from 1 / (1 + gamma) to 1 + gamma, uniform in its logarithm.
      noise_sigma: Gaussian noise per voxel, as a fraction of the standard deviation.
      isotropic_in_plane: whether y and x voxel sizes are equal; where they are not, turning by other than 180 degrees
        (both flips) would train on shapes that no volume holds, and is refused.

    Source: Ronneberger, Fischer and Brox 2015, section 3.1, for the elastic terms and the kinds of variation.
    """

    elastic_sigma_px: float = 0.0
    elastic_grid: tuple[int, int] = (3, 3)
    elastic_spacing_px: float = 0.0
    rotation_degrees: float = 0.0
    flips: bool = False
    rotate90: bool = False
    contrast: float = 0.0
    brightness: float = 0.0
    gamma: float = 0.0
    noise_sigma: float = 0.0
    isotropic_in_plane: bool = True

    def __post_init__(self) -> None:
        amounts = ("elastic_sigma_px", "elastic_spacing_px", "contrast", "brightness", "gamma", "noise_sigma")
        for name in (*amounts, "rotation_degrees"):
            value = getattr(self, name)
            if not (isfinite(value) and value >= 0):
                raise ValueError(f"{name}={value} is not an amount: give a finite number of 0 (off) or more.")
        if self.contrast >= 1:
            raise ValueError(
                f"contrast={self.contrast} allows a factor of 0 or below, which erases or inverts the image: give less "
                "than 1, such as 0.2."
            )
        self._check_geometry()

    def _check_geometry(self) -> None:
        if len(self.elastic_grid) != 2 or min(self.elastic_grid) < 2:
            raise ValueError(f"elastic_grid={self.elastic_grid} wants at least 2 nodes on each of y, x, as in (3, 3).")
        if self.rotation_degrees > 180:
            raise ValueError(f"rotation_degrees={self.rotation_degrees} passes 180, which is any angle: give 0 to 180.")
        if not self.isotropic_in_plane and (self.rotation_degrees or self.rotate90):
            raise ValueError(
                f"rotation_degrees={self.rotation_degrees} and rotate90={self.rotate90} with y != x voxel sizes: a "
                "turn would stretch cells into shapes the volume never shows. Set rotation_degrees=0, rotate90=False; "
                "flips=True still gives turns of 180 degrees."
            )


class Anchor(NamedTuple):
    """A pixel that a crop is to hold: its centre lies within `reach_px` / 2 of it along y and x.

    A reach of the crop's extent / sqrt(2) keeps the pixel in the crop whichever way that is turned, unless the
    section's edge or the elastic field pushes it out of a corner.
    """

    y: int
    x: int
    reach_px: float


def rng_for(seed: int, index: int) -> np.random.Generator:
    """The generator of sample `index` of a run, the same in whichever worker, process or restart asks.

    Counter-based (Philox 4x64): the seed is the key and the index the counter's highest word, so that the streams of
    two indices are 2^194 draws apart and cannot overlap.

    Args:
      seed: of the run, in [0, 2^64).
      index: of the sample, in [0, 2^64).

    Raises:
      ValueError: either lies outside.
    """
    for name, value in (("seed", seed), ("index", index)):
        if not 0 <= value < 2**64:
            raise ValueError(f"{name}={value} does not fit the generator's 64-bit word: give 0 to 2^64 - 1.")
    counter = np.array([0, 0, 0, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=int(seed), counter=counter))


def sample_on_one_thread() -> None:
    """Keep OpenCV to the core of the task that calls it: sample workers are many, and the trainer wants the others."""
    cv2.setNumThreads(1)


def sample_crop(
    rng: np.random.Generator,
    image: NDArray[np.float32],
    labels: NDArray[np.uint8],
    weights: NDArray[np.float32],
    crop: tuple[int, int],
    augmentation: Augmentation,
    margin: int = 0,
    anchor: Anchor | None = None,
) -> Triple:
    """Cut one random, augmented crop from a section: image, labels and weights through one sampling map.

    The map reads from the whole section: a rotated crop's corners hold real context, and only what lies beyond the
    section's true edge is mirrored. Unaugmented, the crop is a plain slice. A section smaller than the crop is mirrored
    around. For the same `rng` every augmentation cuts at the same relative place.

    Without its margin the crop lies inside the section. Were the margin kept inside too, no pixel near the section's
    edge would ever be scored, although prediction goes to the very edge, on mirrored context.

    Args:
      rng: the source of every draw, as from `rng_for`.
      image: float32, (y, x) or (y, x, c).
      labels: uint8, (y, x).
      weights: float32, (y, x); 0 marks pixels of unknown label.
      crop: extent (y, x) of the result, pixels.
      augmentation: what may vary.
      margin: pixels on each side of the crop that are context only: what a valid network consumes.
      anchor: a pixel to hold; None takes any place of the section.

    Returns:
      image float32, (h, w) or (h, w, c); labels uint8, (h, w), values a subset of those given; weights float32, (h, w).

    Raises:
      ValueError: shapes or dtypes disagree with the above, the section is empty, or the crop is nothing but margin.
    """
    check_triple(image, labels, weights)
    if min(crop) - 2 * margin < 1:
        raise ValueError(
            f"crop={crop} holds no pixel within its margin of {margin}: give at least 1 on each of y, x, such as "
            "(256, 256)."
        )
    sampling_map = draw_sampling_map(rng, (labels.shape[0], labels.shape[1]), crop, augmentation, margin, anchor)
    image, labels, weights = warp_together(image, labels, weights, sampling_map)
    return jitter_intensity(rng, image, augmentation), labels, weights


def draw_sampling_map(
    rng: np.random.Generator,
    section: tuple[int, int],
    crop: tuple[int, int],
    augmentation: Augmentation,
    margin: int = 0,
    anchor: Anchor | None = None,
) -> NDArray[np.float32]:
    """Draw where each pixel of a crop is read: place, flips, turn, rotation and elastic field in one map.

    Args:
      rng: the source of the draws.
      section: extent (y, x) of the section, pixels.
      crop: extent (y, x) of the crop, pixels.
      augmentation: what may vary.
      margin: pixels on each side of the crop that may lie beyond the section.
      anchor: a pixel to hold; None takes any place of the section.

    Returns:
      float32, (2, h, w), pixels of the section, ordered (y, x).
    """
    place = rng.random(2)
    matrix = _draw_matrix(rng, augmentation)
    # A crop turned by 90 degrees covers w x h pixels: placed by that extent, its pixels fall on pixels.
    quarter_turned = abs(matrix[0, 1]) == 1
    placed = (crop[0] - 2 * margin, crop[1] - 2 * margin)
    centre = _place_centre(place, section, placed[::-1] if quarter_turned else placed, anchor)
    y, x = (np.arange(extent, dtype=np.float32) - np.float32((extent - 1) / 2) for extent in crop)
    sampling_map: NDArray[np.float32] = matrix[:, :1, None] * y[:, None] + (
        matrix[:, 1:, None] * x + centre[:, None, None]
    )
    if augmentation.elastic_sigma_px:
        field = elastic_field(rng, crop, augmentation.elastic_sigma_px, _grid(crop, augmentation))
        sampling_map += (matrix @ field.reshape(2, -1)).reshape(field.shape)
    return sampling_map


def jitter_intensity(
    rng: np.random.Generator, image: NDArray[np.float32], augmentation: Augmentation
) -> NDArray[np.float32]:
    """Vary contrast, brightness and gamma of an image, then add noise; the image given is left as it is.

    Channels share one contrast, brightness and gamma (they are neighbouring sections of one acquisition); noise is
    independent in every voxel. A constant image has no spread to be relative to, and stays constant.

    Args:
      rng: the source of the draws.
      image: float32, (y, x) or (y, x, c).
      augmentation: what may vary.

    Returns:
      float32, the same shape.
    """
    factor, offset, exponent = rng.uniform(-1, 1, size=3) * (
        augmentation.contrast,
        augmentation.brightness,
        log1p(augmentation.gamma),
    )
    spread = float(image.std())
    if augmentation.contrast or augmentation.brightness:
        mean = float(image.mean())
        image = np.float32(1 + factor) * (image - np.float32(mean)) + np.float32(mean + offset * spread)
    if augmentation.gamma:
        image = _apply_gamma(image, float(np.exp(exponent)))
    if augmentation.noise_sigma:
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        noise *= np.float32(augmentation.noise_sigma * spread)
        image = image + noise
    return image


def _draw_matrix(rng: np.random.Generator, augmentation: Augmentation) -> NDArray[np.float32]:
    """The float32 (2, 2) matrix from crop to section offsets, (y, x) order; exact for flips and quarter turns."""
    signs, turn, angle = rng.integers(0, 2, size=2) * 2 - 1, rng.integers(0, 4), rng.uniform(-1, 1)
    theta = radians(angle * augmentation.rotation_degrees)
    matrix = np.array([[cos(theta), -sin(theta)], [sin(theta), cos(theta)]])
    if augmentation.rotate90:
        matrix = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), int(turn)) @ matrix
    if augmentation.flips:
        matrix = np.diag(signs) @ matrix
    return matrix.astype(np.float32)


def _place_centre(
    place: NDArray[np.float64], section: tuple[int, int], extent: tuple[int, int], anchor: Anchor | None
) -> NDArray[np.float32]:
    """The centre (y, x) of an extent whose first pixel is drawn evenly among those that keep it inside the section.

    An extent larger than the section is placed anywhere around it instead. `place` is (2,), in [0, 1). With an anchor
    the draw is among the places near it, and the nearest one that is inside is taken.
    """
    room = np.subtract(section, extent)
    if anchor is None:
        first = np.minimum(room, 0) + np.floor(place * (np.abs(room) + 1))
    else:
        wanted = np.array(anchor[:2]) - (np.array(extent) - 1) / 2 + (place - 0.5) * anchor.reach_px
        first = np.clip(np.floor(wanted + 0.5), np.minimum(room, 0), np.maximum(room, 0))
    return np.asarray(first + (np.array(extent) - 1) / 2, dtype=np.float32)


def _grid(crop: tuple[int, int], augmentation: Augmentation) -> tuple[int, int]:
    if augmentation.elastic_spacing_px:
        return grid_for_spacing(crop, augmentation.elastic_spacing_px)
    return augmentation.elastic_grid


def _apply_gamma(image: NDArray[np.float32], exponent: float) -> NDArray[np.float32]:
    low, high = image.min(), image.max()
    if low == high:
        return image
    scaled = (image - low) / (high - low)
    curved: NDArray[np.float32] = scaled ** np.float32(exponent) * (high - low) + low
    return curved
