"""Normalisation: one rule, frozen with the network, for training and inference alike.

Statistics of a tile or a batch would make a voxel's value depend on what was read with it, and seams would follow. So
they are estimated once, over the training sections, and travel with the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A section is summed in bands of about this many voxels (32 MiB as float64), whatever its size.
_BAND_VOXELS = 2**22


@dataclass(frozen=True, slots=True)
class Normalisation:
    """The map from raw intensities to what the network sees: (raw - mean) / std.

    >>> Normalisation("global", mean=100.0, std=50.0).apply(np.uint8([0, 100, 200])).tolist()
    [-2.0, 0.0, 2.0]

    Attributes:
      rule: `global`, one mean and standard deviation for every voxel.
      mean: in raw intensities.
      std: in raw intensities, above 0.
    """

    rule: str
    mean: float
    std: float

    def __post_init__(self) -> None:
        if self.rule != "global":
            raise ValueError(f"rule={self.rule!r} is unknown: an image would be scaled some other way. Use 'global'.")
        if not isfinite(self.mean):
            raise ValueError(f"mean={self.mean} would turn every voxel into NaN: estimate it from finite intensities.")
        if not (isfinite(self.std) and self.std > 0):
            raise ValueError(f"std={self.std} cannot divide intensities: estimate it from an image that varies.")

    def apply(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Normalise raw voxels; each depends on its own value alone.

        Args:
          raw: integer or floating, any shape.

        Returns:
          float32, the same shape.
        """
        # float32 holds integers to 2^24: wider ones lose their differences unless the mean is subtracted first.
        working = np.dtype(np.float32 if np.can_cast(raw.dtype, np.float32) else np.float64)
        normalised = raw.astype(working)
        normalised -= self.mean
        normalised /= self.std
        return normalised.astype(np.float32, copy=False)

    def to_dict(self) -> dict[str, Any]:
        """The rule as plain values, for a bundle's contract."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Normalisation:
        """The rule from plain values.

        Raises:
          ValueError: a key is missing or unknown, or a value is not legal.
        """
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise ValueError(f"normalisation has keys {sorted(values)}: expected exactly {sorted(names)}.")
        return cls(rule=str(values["rule"]), mean=float(values["mean"]), std=float(values["std"]))


@dataclass(frozen=True, slots=True)
class Moments:
    """Summable statistics of intensities: count, mean, sum of squared deviations, least and greatest.

    Merged by Chan's rule: raw sums of squares cancel where the mean is far from 0.

    >>> Moments.of(np.uint8([1, 2])) + Moments.of(np.uint8([3, 6]))
    Moments(count=4, mean=3.0, deviation=14.0, low=1.0, high=6.0)

    Source: Chan, Golub and LeVeque 1983.
    """

    count: int
    mean: float
    deviation: float
    low: float
    high: float

    @classmethod
    def of(cls, voxels: NDArray[Any]) -> Moments:
        """The statistics, in float64, of an integer or floating array of at least one voxel, all of them finite."""
        values = voxels.astype(np.float64)
        mean = float(values.mean())
        values -= mean
        deviation = float(np.square(values, out=values).sum())
        return cls(voxels.size, mean, deviation, float(voxels.min()), float(voxels.max()))

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        apart = other.mean - self.mean
        return Moments(
            count,
            self.mean + apart * other.count / count,
            self.deviation + other.deviation + apart**2 * self.count * other.count / count,
            min(self.low, other.low),
            max(self.high, other.high),
        )


def estimate_global(sections: Iterable[NDArray[Any]]) -> Normalisation:
    """Mean and (population) standard deviation over all sections, streamed: one section in memory at a time.

    Args:
      sections: integer or floating arrays of any shape.

    Returns:
      The `global` rule.

    Raises:
      ValueError: there is no voxel, a value is NaN or infinite, all values are the same, or a dtype is neither
        integer nor floating.
    """
    total: Moments | None = None
    for index, section in enumerate(sections):
        for band in _bands(section, index):
            total = band if total is None else total + band
    if total is None:
        raise ValueError(
            "no voxels to estimate a mean and standard deviation from: give at least one non-empty section."
        )
    if total.low == total.high:
        raise ValueError(
            f"every voxel is {total.low}: nothing varies, and dividing by a standard deviation of 0 gives NaN. Check "
            "that the volume is not blank there, or give other sections."
        )
    return Normalisation("global", total.mean, sqrt(total.deviation / total.count))


def _bands(section: NDArray[Any], index: int) -> Iterator[Moments]:
    if section.dtype.kind not in "uif":
        raise ValueError(f"section {index} is {section.dtype}, not intensities: give integers or floats.")
    flat = section.reshape(-1)
    for first in range(0, flat.size, _BAND_VOXELS):
        band = flat[first : first + _BAND_VOXELS]
        if not np.isfinite(band).all():
            raise ValueError(
                f"section {index} holds NaN or infinite values: the mean, and with it every normalised voxel, would be "
                "NaN. Replace or mask those voxels first."
            )
        yield Moments.of(band)
