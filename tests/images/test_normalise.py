"""The normalisation rules: exact statistics, and voxels that depend on themselves alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tessera.images import normalise
from tessera.images.normalise import Moments, Normalisation, estimate, estimate_global

RULE = Normalisation("global", 127.3, 41.7)


@given(st.lists(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))), min_size=1, max_size=5))
def test_streamed_statistics_are_those_of_all_voxels_at_once(sections: list[NDArray[np.uint8]]) -> None:
    voxels = np.concatenate([section.ravel() for section in sections]).astype(np.float64)
    if voxels.min() == voxels.max():
        with pytest.raises(ValueError, match="nothing varies"):
            estimate_global(sections)
        return
    rule = estimate_global(iter(sections))
    assert rule.mean == pytest.approx(voxels.mean(), rel=1e-12)
    assert rule.std == pytest.approx(voxels.std(), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.uint64, np.float16, np.float32, np.float64])
def test_every_intensity_dtype_is_estimated_in_float64(dtype: type[np.generic]) -> None:
    section = np.random.default_rng(0).integers(0, 100, (50, 50)).astype(dtype)
    rule = estimate_global([section])
    assert rule.mean == pytest.approx(float(section.astype(np.float64).mean()), rel=1e-12)
    assert rule.std == pytest.approx(float(section.astype(np.float64).std()), rel=1e-12)


def test_a_mean_far_from_zero_does_not_cancel_the_spread() -> None:
    """Sums of squares of 1e9 would leave no digit of a variance of 1."""
    section = 1e9 + np.random.default_rng(0).standard_normal((100, 100))
    assert estimate_global([section[:50], section[50:]]).std == pytest.approx(float(section.std()), rel=1e-9)


def test_sections_larger_than_a_band_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    section = np.random.default_rng(0).integers(0, 256, (40, 33)).astype(np.uint8)
    whole = estimate_global([section])
    monkeypatch.setattr(normalise, "_BAND_VOXELS", 100)
    banded = estimate_global([section])
    assert (banded.mean, banded.std) == pytest.approx((whole.mean, whole.std), rel=1e-13)


def test_merging_does_not_depend_on_the_order() -> None:
    parts = [Moments.of(np.random.default_rng(s).random(s + 1)) for s in range(6)]
    forwards, backwards = parts[0], parts[-1]
    for a, b in zip(parts[1:], parts[-2::-1], strict=True):
        forwards, backwards = forwards + a, backwards + b
    assert forwards.count == backwards.count == 21
    assert (forwards.mean, forwards.deviation) == pytest.approx((backwards.mean, backwards.deviation), rel=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_an_error_naming_the_section(bad: float) -> None:
    section = np.ones((4, 4), np.float32)
    section[2, 2] = bad
    with pytest.raises(ValueError, match="section 1 holds NaN or infinite"):
        estimate_global([np.arange(4.0), section])


@pytest.mark.parametrize("value", [0, 7, 0.1])
def test_constant_data_is_an_error(value: float) -> None:
    with pytest.raises(ValueError, match="nothing varies, and dividing by a standard deviation of 0"):
        estimate_global([np.full((13, 17), value)] * 3)


@pytest.mark.parametrize("sections", [[], [np.zeros((0, 4))]])
def test_no_voxels_are_an_error(sections: list[NDArray[np.float64]]) -> None:
    with pytest.raises(ValueError, match="no voxels to estimate"):
        estimate_global(sections)


@pytest.mark.parametrize("section", [np.zeros(3, bool), np.zeros(3, complex)])
def test_dtypes_without_intensities_are_an_error(section: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="not intensities: give integers or floats"):
        estimate_global([section])


@given(hnp.arrays(np.uint8, (6, 7)), st.integers(0, 5), st.integers(0, 6))
def test_a_voxels_value_does_not_depend_on_what_is_read_with_it(raw: NDArray[np.uint8], y: int, x: int) -> None:
    assert RULE.apply(raw)[y, x] == RULE.apply(raw[y : y + 1, x : x + 1])[0, 0]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.float16, np.float32, np.float64])
def test_apply_is_raw_less_mean_over_std_in_float32(dtype: type[np.generic]) -> None:
    raw = np.arange(120).astype(dtype)
    normalised = RULE.apply(raw)
    assert normalised.dtype == np.float32
    np.testing.assert_allclose(normalised, (np.arange(120) - 127.3) / 41.7, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(raw, np.arange(120).astype(dtype))


def test_wide_integers_keep_their_differences() -> None:
    raw = np.array([2**30, 2**30 + 1], np.uint32)
    assert Normalisation("global", 2.0**30, 1.0).apply(raw).tolist() == [0, 1]


def test_normalising_the_data_it_was_estimated_from_gives_mean_0_and_std_1() -> None:
    section = np.random.default_rng(0).integers(0, 256, (100, 100)).astype(np.uint8)
    normalised = estimate_global([section]).apply(section).astype(np.float64)
    assert abs(normalised.mean()) < 1e-6
    assert normalised.std() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("rule", [RULE, Normalisation("per_section", 0.6, 0.3)])
def test_the_rule_survives_json(rule: Normalisation) -> None:
    assert Normalisation.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule


@pytest.mark.parametrize("values", [{"rule": "global", "mean": 1.0}, {**RULE.to_dict(), "median": 3}])
def test_missing_and_unknown_keys_are_errors(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected exactly \['mean', 'rule', 'std'\]"):
        Normalisation.from_dict(values)


@pytest.mark.parametrize(
    ("rule", "mean", "std", "message"),
    [
        ("per_tile", 0.0, 1.0, "rule='per_tile' is unknown"),
        ("global", float("nan"), 1.0, "mean=nan would turn every voxel into NaN"),
        ("global", 0.0, 0.0, "std=0.0 cannot divide"),
        ("global", 0.0, -1.0, "std=-1.0 cannot divide"),
        ("global", 0.0, float("inf"), "std=inf cannot divide"),
    ],
)
def test_a_rule_that_cannot_normalise_is_an_error(rule: str, mean: float, std: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Normalisation(rule, mean, std)


# The per_section rule

PER_SECTION = Normalisation("per_section", 0.5, 0.25)


def _drifted(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Sections of one kind of tissue, and the same with another brightness and contrast in each."""
    rng = np.random.default_rng(seed)
    tissue = rng.integers(60, 150, (4, 80, 90)).astype(np.uint8)
    gain, offset = rng.integers(1, 3, (4, 1, 1)), rng.integers(-50, 0, (4, 1, 1))
    return tissue, (tissue * gain + offset - 60 * (gain - 1)).astype(np.uint8)


@pytest.mark.parametrize("seed", range(3))
def test_what_drifts_from_section_to_section_comes_out_alike(seed: int) -> None:
    tissue, drifted = _drifted(seed)
    assert np.abs(tissue.astype(int) - drifted).max() > 20
    np.testing.assert_allclose(
        PER_SECTION.apply_to_sections(drifted), PER_SECTION.apply_to_sections(tissue), rtol=0, atol=1e-5
    )


def test_estimated_per_section_the_sections_have_mean_0_and_std_1() -> None:
    _, drifted = _drifted(0)
    rule = estimate("per_section", list(drifted))
    normalised = rule.apply_to_sections(drifted).astype(np.float64)
    assert rule.rule == "per_section"
    assert abs(normalised.mean()) < 1e-6
    assert normalised.std() == pytest.approx(1, abs=1e-6)
    assert np.abs(normalised.mean((1, 2))).max() < 0.05
    assert estimate("global", list(drifted)) == estimate_global(drifted)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.float32])
def test_a_section_is_scaled_by_its_levels_then_by_the_rule(dtype: type[np.generic]) -> None:
    raw = np.arange(120).reshape(2, 6, 10).astype(dtype)
    normalised = PER_SECTION.apply(raw, [(10, 30), (50, 100)])
    expected = [((raw[0] - 10.0) / 20 - 0.5) / 0.25, ((raw[1] - 50.0) / 50 - 0.5) / 0.25]
    assert normalised.dtype == np.float32
    np.testing.assert_allclose(normalised, expected, rtol=1e-5, atol=1e-5)


def test_a_part_of_a_section_is_normalised_as_in_the_whole() -> None:
    raw = np.random.default_rng(3).integers(0, 256, (3, 40, 50)).astype(np.uint8)
    levels = [(20.0, 200.0), None, (90.0, 150.0)]
    whole = PER_SECTION.apply(raw, levels)
    np.testing.assert_array_equal(PER_SECTION.apply(raw[1:, 7:30, 11:], levels[1:]), whole[1:, 7:30, 11:])
    assert not whole[1].any(), "a section without levels is flat"


def test_levels_that_do_not_fit_the_rule_are_refused() -> None:
    raw = np.ones((2, 3, 4), np.uint8)
    with pytest.raises(ValueError, match="levels were given to the global rule"):
        RULE.apply(raw, [(1, 2), (1, 2)])
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4\) and no levels.*apply_to_sections"):
        PER_SECTION.apply(raw)
    with pytest.raises(ValueError, match="and 1 levels"):
        PER_SECTION.apply(raw, [(1, 2)])
    with pytest.raises(ValueError, match=r"shape \(3, 4\) and 2 levels"):
        PER_SECTION.apply(raw[0], [(1, 2), (1, 2)])
