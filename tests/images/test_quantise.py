"""Probabilities as bytes and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tessera.images.quantise import STORED_DTYPES, decode, dequantise, encode, quantise


def test_every_byte_survives_the_round_trip() -> None:
    stored = np.arange(256, dtype=np.uint8)
    assert dequantise(stored).dtype == np.float32
    np.testing.assert_array_equal(quantise(dequantise(stored)), stored)


@given(hnp.arrays(np.float32, (5, 5), elements=st.floats(0, 1, width=32)))
def test_a_probability_moves_by_at_most_half_a_step(probability: NDArray[np.float32]) -> None:
    assert np.abs(dequantise(quantise(probability)) - probability).max() <= 1 / 510 + 1e-7


@pytest.mark.parametrize("dtype", STORED_DTYPES)
def test_what_is_decoded_is_stored_again_unchanged(dtype: str) -> None:
    probability = np.random.default_rng(0).random((4, 50), np.float32)
    stored = encode(probability, dtype)  # type: ignore[arg-type]
    assert stored.dtype == dtype and decode(stored).dtype == np.float32
    np.testing.assert_array_equal(encode(decode(stored), dtype), stored)  # type: ignore[arg-type]
    np.testing.assert_allclose(decode(stored), probability, atol=1 / 510 + 1e-7)
    assert encode(np.float32([1.0000001, -1e-7]), dtype).max() in (1, 255)  # type: ignore[arg-type]


def test_no_other_value_or_dtype_is_stored_or_read() -> None:
    with pytest.raises(ValueError, match=r"stored as uint8, float16, float32, not float64\. Try uint8"):
        encode(np.zeros(3), "float64")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"uint8, float16, float32, not float64: read the volume as it was written"):
        decode(np.zeros(3))
    for bad in (1.5, float("nan")):
        with pytest.raises(ValueError, match=r"probabilities lie in \[0, 1\]"):
            encode(np.float32([bad]), "float16")
        with pytest.raises(ValueError, match=r"probabilities lie in \[0, 1\]"):
            decode(np.float32([bad]))


def test_halves_round_to_even() -> None:
    assert quantise(np.array([0.5, 1.5, 2.5, 253.5]) / 255).tolist() == [0, 2, 2, 254]


def test_a_rounding_error_past_one_is_one() -> None:
    assert quantise(np.float32([1.0000001, -1e-7])).tolist() == [255, 0]


@pytest.mark.parametrize("bad", [1.01, -0.01, float("nan"), float("inf")])
def test_values_that_would_wrap_round_are_errors(bad: float) -> None:
    with pytest.raises(ValueError, match=r"probabilities lie in \[0, 1\]"):
        quantise(np.array([0.5, bad]))


def test_an_empty_array_stays_empty() -> None:
    assert quantise(np.zeros((0, 3), np.float32)).shape == (0, 3)


def test_other_dtypes_are_errors() -> None:
    with pytest.raises(ValueError, match="uint8 is not a probability"):
        quantise(np.zeros(3, np.uint8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stored probabilities are uint8, not int64"):
        dequantise(np.zeros(3, np.int64))  # type: ignore[arg-type]
