"""Counter-based noise: random numbers that are a function of *where*, not of how many were drawn before.

A generator that is drawn from in order gives a voxel another value whenever the block around it changes. Here every
value is a hash of its absolute coordinates, so that a block made alone is bit-equal to the same block of the whole.

Bit-equality is why nothing below uses `exp`, `log`, `einsum` or a sum over a long axis: NumPy's vectorised loops may
round those differently in a row's tail than in its middle. Elementwise +, -, *, / and sqrt are exactly rounded
everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_BELL_SCALE = np.float32(1.0 / (65536.0 * np.sqrt(1.0 / 3.0)))


def mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble each 64-bit word, one to one, so that neighbouring inputs give unrelated outputs.

    Source: the finaliser of splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").

    >>> int(mix(np.array([0], np.uint64))[0])
    16294208416658607535
    """
    mixed = value + _GOLDEN
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def stream(seed: int, purpose: int) -> NDArray[np.uint64]:
    """The key of one purpose's random numbers under one seed.

    Returns:
      uint64, (1,): an array and not a scalar, because NumPy warns when a scalar wraps round.
    """
    return mix(mix(np.array([seed], np.uint64)) + np.uint64(purpose))


def hash_at(key: NDArray[np.uint64], *coordinates: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hash integer coordinates, one array per axis, broadcast together.

    Args:
      key: uint64, broadcastable: a `stream`, or another hash.
      coordinates: int64, may be negative.
    """
    return reduce(lambda hashed, c: mix(hashed ^ mix(c.astype(np.uint64))), coordinates, key)


def uniform(words: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Numbers in [0, 1), float32, from a word's upper 24 bits, which float32 holds exactly."""
    return (words >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def bell(words: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Nearly normal numbers (mean 0, variance 1, within +-3.47), float32, from a word's four 16-bit parts.

    The sum of four uniform numbers stands in for a Gaussian: it is exact in integers, and needs no logarithm.
    """
    # On a little- and on a big-endian machine the parts differ in order only, and a sum does not see it.
    parts = words.view(np.uint16).reshape(*words.shape, 4)
    total = parts[..., 0].astype(np.int32)
    for part in range(1, 4):
        total += parts[..., part]
    return (total - 2 * 65535).astype(np.float32) * _BELL_SCALE


def white_noise(box: Box, key: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Independent `bell` noise at each voxel of `box`, float32, of the box's shape."""
    return bell(hash_at(key, *np.ix_(*(np.arange(a, b) for a, b in zip(box.start, box.stop, strict=True)))))


def value_noise(box: Box, wavelength_px: Sequence[int], key: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Smooth noise: `bell` numbers on a lattice anchored at voxel 0, interpolated between its nodes.

    Args:
      box: where, in voxels.
      wavelength_px: voxels between nodes, per axis; 1 makes an axis' planes independent of one another.
      key: the stream of this field.

    Returns:
      float32, of the box's shape; variance 1 at the nodes, about 0.5 per interpolated axis of that elsewhere.
    """
    nodes = Box(
        tuple(a // w for a, w in zip(box.start, wavelength_px, strict=True)),
        tuple((b - 1) // w + 2 for b, w in zip(box.stop, wavelength_px, strict=True)),
    )
    values = white_noise(nodes, key)
    for axis, wavelength in enumerate(wavelength_px):
        values = _interpolate(values, axis, np.arange(box.start[axis], box.stop[axis]), wavelength)
    return values


def _interpolate(nodes: NDArray[np.float32], axis: int, at: NDArray[np.int64], wavelength: int) -> NDArray[np.float32]:
    """Values at voxels `at` along `axis`, between nodes `wavelength` voxels apart, with zero slope at the nodes."""
    node, phase = np.divmod(at, wavelength)
    node -= node[0]
    below = np.take(nodes, node, axis)
    if wavelength == 1:
        return below
    t = (phase / wavelength).astype(np.float32)
    weight = t * t * (np.float32(3) - np.float32(2) * t)
    rise = np.take(nodes, node + 1, axis) - below
    rise *= weight.reshape([-1 if a == axis else 1 for a in range(nodes.ndim)])
    rise += below
    return rise
