"""Promises about coarser images: every voxel counts once, at odd edges too, and dask agrees."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.images.pooling import mean_pool, pooled_shape

shapes = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9))
windows = st.tuples(*[st.integers(1, 3)] * 3)


def oracle(voxels: np.ndarray, factors: tuple[int, ...]) -> np.ndarray:
    """Means by dask, with what the last windows lack filled by NaN, which do not count."""
    lacking = [(0, -n % f) for n, f in zip(voxels.shape, factors, strict=True)]
    whole = np.pad(voxels.astype(np.float64), lacking, constant_values=np.nan)
    return np.asarray(da.coarsen(np.nanmean, da.from_array(whole), dict(enumerate(factors))).compute())


@given(shapes, windows, st.integers(0, 2**31))
def test_a_coarser_voxel_is_the_mean_of_those_it_covers(
    shape: tuple[int, ...], factors: tuple[int, ...], seed: int
) -> None:
    voxels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    expected = oracle(voxels, factors)
    assert pooled_shape(shape, factors) == expected.shape
    np.testing.assert_array_equal(mean_pool(voxels, factors), np.rint(expected).astype(np.uint8))
    np.testing.assert_allclose(mean_pool(voxels.astype(np.float32), factors), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "bool"])
def test_the_dtype_stays_and_the_largest_value_does_not_overflow(dtype: str) -> None:
    top = True if dtype == "bool" else 1.5 if dtype == "float32" else np.iinfo(dtype).max
    voxels = np.full((3, 5, 5), top, dtype)
    pooled = mean_pool(voxels, (2, 2, 2))
    assert pooled.dtype == voxels.dtype and (pooled == top).all()
