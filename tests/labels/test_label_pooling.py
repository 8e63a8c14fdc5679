"""Promises about coarser labels: an id of a level is one of the ids below it, the most frequent."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tessera.labels.pooling import mode_pool


def oracle(labels: np.ndarray, factors: tuple[int, ...]) -> np.ndarray:
    """Counting window by window."""
    shape = tuple(-(-n // f) for n, f in zip(labels.shape, factors, strict=True))
    pooled = np.empty(shape, labels.dtype)
    for place in product(*map(range, shape)):
        window = labels[tuple(slice(p * f, p * f + f) for p, f in zip(place, factors, strict=True))]
        counts = Counter(window.ravel().tolist())
        pooled[place] = min(counts, key=lambda value: (-counts[value], value))
    return pooled


@given(
    st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 7)),
    st.tuples(*[st.integers(1, 2)] * 3),
    st.integers(0, 2**31),
)
def test_the_most_frequent_id_is_kept_and_no_other_ever_appears(
    shape: tuple[int, ...], factors: tuple[int, ...], seed: int
) -> None:
    ids = np.array([0, 3, 2**40, 2**64 - 1], np.uint64)
    labels = ids[np.random.default_rng(seed).integers(0, 4, shape)]
    pooled = mode_pool(labels, factors)
    assert pooled.dtype == np.uint64
    np.testing.assert_array_equal(pooled, oracle(labels, factors))
