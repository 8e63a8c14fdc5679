"""Normalisation: one rule, frozen with the network, for training and inference alike.

Statistics of a tile or a batch would make a voxel's value depend on what was read with it, and seams would follow. So
they are estimated once, over the training sections, and travel with the weights. Where sections drift, the
`per_section` rule first brings each to a common scale, by grey levels that were measured over the section beforehand:

    global         raw -----------------------------------------------> (raw - mean) / std
    per_section    raw --> (raw - low_z) / (high_z - low_z) = scaled --> (scaled - mean) / std
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import isfinite, sqrt
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tessera.images.levels import Levels, levels_of_sections

Rule = Literal["global", "per_section"]

# A section is summed in bands of about this many voxels (32 MiB as float64), whatever its size.
_BAND_VOXELS = 2**22


@dataclass(frozen=True, slots=True)
class Normalisation:
    """The map from raw intensities to what the network sees: (raw - mean) / std, of a section's own scale if so ruled.

    >>> Normalisation("global", mean=100.0, std=50.0).apply(np.uint8([0, 100, 200])).tolist()
    [-2.0, 0.0, 2.0]
    >>> Normalisation("per_section", mean=0.5, std=0.25).apply(np.uint8([[[50, 100, 150]]]), [(50, 150)]).tolist()
    [[[-2.0, 0.0, 2.0]]]

    Attributes:
      rule: `global`, one mean and standard deviation for every voxel; `per_section`, the same after each section was
        scaled so that its low and high grey level (levels.py) are 0 and 1.
      mean: in raw intensities, or on that scale.
      std: likewise, above 0.
    """

    rule: Rule
    mean: float
    std: float

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ValueError(
                f"rule={self.rule!r} is unknown: an image would be scaled some other way. Use 'global' or "
                "'per_section'."
            )
        if not isfinite(self.mean):
            raise ValueError(f"mean={self.mean} would turn every voxel into NaN: estimate it from finite intensities.")
        if not (isfinite(self.std) and self.std > 0):
            raise ValueError(f"std={self.std} cannot divide intensities: estimate it from an image that varies.")

    @property
    def needs_levels(self) -> bool:
        """Whether sections are scaled by levels of their own."""
        return self.rule == "per_section"

    def apply(self, raw: NDArray[Any], levels: Sequence[Levels | None] | None = None) -> NDArray[np.float32]:
        """Normalise raw voxels; each depends on its own value alone, and on its section's levels.

        Args:
          raw: integer or floating; any shape under `global`, (z, y, x) under `per_section`.
          levels: of each of the z sections, for `per_section` alone; a section of None has no scale and becomes 0,
            the mean, throughout.

        Returns:
          float32, the same shape.

        Raises:
          ValueError: levels are missing, are not one per section, or are given to the `global` rule.
        """
        _check_levels_fit(self.rule, raw, levels)
        # float32 holds integers to 2^24: wider ones lose their differences unless the mean is subtracted first.
        working = np.dtype(np.float32 if np.can_cast(raw.dtype, np.float32) else np.float64)
        normalised = raw.astype(working)
        if levels is None:
            normalised -= self.mean
            normalised /= self.std
        else:
            for section, own in zip(normalised, levels, strict=True):
                self._scale(section, own)
        return normalised.astype(np.float32, copy=False)

    def _scale(self, section: NDArray[Any], levels: Levels | None) -> None:
        """Normalise one section in place, both steps in one."""
        if levels is None:
            section[...] = 0
            return
        low, high = levels
        section -= low + self.mean * (high - low)
        section /= self.std * (high - low)

    def apply_to_sections(self, sections: NDArray[Any]) -> NDArray[np.float32]:
        """Normalise whole sections, whose levels, where the rule needs them, are measured here and now.

        Args:
          sections: integer or floating, (z, y, x), each of them whole.

        Raises:
          ValueError: the rule needs levels and a section has none.
        """
        return self.apply(sections, levels_of_sections(sections) if self.needs_levels else None)

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
        return cls(rule=values["rule"], mean=float(values["mean"]), std=float(values["std"]))


def _check_levels_fit(rule: Rule, raw: NDArray[Any], levels: Sequence[Levels | None] | None) -> None:
    """Refuse levels that are not one per section where the rule wants them, and any where it does not."""
    if rule == "global":
        if levels is not None:
            raise ValueError("levels were given to the global rule: they would be ignored. Leave them out.")
    elif levels is None or raw.ndim != 3 or len(levels) != len(raw):
        had = "no levels" if levels is None else f"{len(levels)} levels"
        raise ValueError(
            f"the per_section rule got voxels of shape {raw.shape} and {had}: each of z sections is scaled by its own. "
            "Give voxels z, y, x and one pair of levels per section, or whole sections to apply_to_sections."
        )


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


def estimate(rule: Rule, sections: Iterable[NDArray[Any]]) -> Normalisation:
    """A rule with the statistics of these sections, so that they come out with mean 0 and standard deviation 1.

    Args:
      rule: which.
      sections: whole ones, integer or floating, (y, x).

    Raises:
      ValueError: see `estimate_global`, and `levels_of_sections` for `per_section`.
    """
    if rule == "global":
        return estimate_global(sections)
    scale = Normalisation("per_section", 0.0, 1.0)
    scaled = estimate_global(scale.apply_to_sections(section[np.newaxis])[0] for section in sections)
    return Normalisation("per_section", scaled.mean, scaled.std)


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
