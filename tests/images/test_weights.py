"""Border weights against one whole-section distance transform per cell."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from tessera.images.targets import UNKNOWN
from tessera.images.weights import border_reach_px, border_weights, class_weights, weights_of_targets


def border_oracle(labels: NDArray[np.generic], w0: float, sigma_px: float) -> NDArray[np.float64]:
    """Equation 2 with w_c = 1, as written: every distance of every cell over the whole section."""
    cells, count = ndimage.label(labels > 0)  # scipy's default structure is 4-connected
    if count < 2:
        return np.ones(labels.shape)
    distances = np.sort([ndimage.distance_transform_edt(cells != name) for name in range(1, count + 1)], axis=0)
    term = w0 * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma_px**2))
    return 1 + np.where(labels > 0, 0, term)


@given(st.integers(0, 2**32), st.floats(0.3, 3), st.sampled_from([1.0, 2.5, 5.0]), st.floats(-0.1, 0.1))
@settings(max_examples=40, deadline=None)
def test_weights_equal_the_equation_within_a_millionth_of_w0(
    seed: int, blur: float, sigma_px: float, threshold: float
) -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((48, 64)), blur)
    labels = (noise > threshold).astype(np.uint8)
    weights = border_weights(labels, 10.0, sigma_px)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, border_oracle(labels, 10.0, sigma_px), atol=1.1e-5)


def test_cells_far_apart_get_a_term_only_within_the_reach() -> None:
    labels = np.zeros((9, 120), np.uint8)
    labels[:, [0, 20, 100]] = 1
    weights = border_weights(labels, 10.0, 5.0)
    np.testing.assert_allclose(weights[:, 1:20], 1 + 10 * np.exp(-(20**2) / 50), rtol=1e-6)  # d1 + d2 = 20 all along
    np.testing.assert_array_equal(weights[:, 24:], 1)
    assert border_reach_px(5.0) == pytest.approx(26.28, abs=0.01)


def test_a_one_pixel_membrane_weighs_nearly_the_most() -> None:
    labels = np.ones((11, 11), np.uint8)
    labels[:, 5] = 0
    weights = border_weights(labels, 10.0, 5.0)
    np.testing.assert_allclose(weights[:, 5], 1 + 10 * np.exp(-(2**2) / 50), rtol=1e-6)
    np.testing.assert_array_equal(np.delete(weights, 5, axis=1), 1)


def test_cells_that_touch_at_a_corner_are_two() -> None:
    labels = np.zeros((4, 4), np.uint8)
    labels[:2, :2] = labels[2:, 2:] = 1
    weights = border_weights(labels)
    np.testing.assert_allclose(weights[1, 2], 1 + 10 * np.exp(-(2**2) / 50), rtol=1e-6)


@pytest.mark.parametrize("cells", [0, 1])
def test_fewer_than_two_cells_have_no_border(cells: int) -> None:
    labels = np.zeros((20, 20), np.uint8)
    labels[5:8, 5 : 5 + 3 * cells] = 1
    np.testing.assert_array_equal(border_weights(labels), 1)


def test_a_section_of_nothing_but_cell_weighs_one() -> None:
    np.testing.assert_array_equal(border_weights(np.ones((8, 8), np.uint8), class_balance=True), 1)


def test_the_values_of_labels_do_not_matter_only_their_components() -> None:
    labels = (np.random.default_rng(0).random((40, 40)) > 0.4).astype(np.uint8)
    expected = border_weights(labels)
    np.testing.assert_array_equal(border_weights(labels * np.uint8(255)), expected)
    np.testing.assert_array_equal(border_weights(labels > 0), expected)
    np.testing.assert_array_equal(border_weights(labels.astype(np.uint64) << np.uint64(40)), expected)


def test_weights_are_the_same_bits_every_time() -> None:
    labels = (np.random.default_rng(0).random((40, 40)) > 0.4).astype(np.uint8)
    expected = border_weights(labels)
    for _ in range(20):
        np.testing.assert_array_equal(border_weights(labels.copy()), expected)


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_balanced_classes_weigh_the_same_and_a_pixel_weighs_one_on_average(membrane: int, cell: int) -> None:
    of_membrane, of_cell = class_weights(membrane, cell)
    assert of_membrane * membrane == pytest.approx(of_cell * cell)
    assert of_membrane * membrane + of_cell * cell == pytest.approx(membrane + cell)


def test_class_balance_adds_to_the_border_term() -> None:
    labels = np.ones((10, 10), np.uint8)
    labels[:, 4:6] = 0
    border = border_weights(labels) - 1
    balanced = border_weights(labels, class_balance=True)
    np.testing.assert_allclose(balanced - border, np.where(labels, 0.625, 2.5), atol=1e-6)


def test_sections_are_weighed_one_by_one_but_balanced_together() -> None:
    labels = (np.random.default_rng(1).random((3, 24, 24)) > [[[0.2]], [[0.5]], [[0.0]]]).astype(np.uint8)
    targets = [1 - section for section in labels]
    plain = np.stack(weights_of_targets(targets))
    assert plain.dtype == np.float32
    np.testing.assert_array_equal(plain, [border_weights(section) for section in labels])
    balance = np.stack(weights_of_targets(targets, class_balance=True)) - (plain - 1)
    membrane, cell = class_weights(int((labels == 0).sum()), int((labels > 0).sum()))
    np.testing.assert_allclose(balance, np.where(labels, cell, membrane), atol=1e-5)


# Unknown pixels


def test_unknown_pixels_weigh_nothing_and_count_in_no_class() -> None:
    rng = np.random.default_rng(2)
    target = rng.choice(np.array([0, 1, UNKNOWN], np.uint8), (24, 24), p=[0.6, 0.2, 0.2])
    (weights,) = weights_of_targets([target], w0=0, class_balance=True)
    of_membrane, of_cell = class_weights(int((target == 1).sum()), int((target == 0).sum()))
    expected = np.select([target == 1, target == 0], [of_membrane, of_cell], 0.0)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_a_border_is_that_between_known_cells() -> None:
    target = np.zeros((9, 40), np.uint8)
    target[:, [5, 15, 25]] = 1  # four cells
    (whole,) = weights_of_targets([target])
    target[:, 6:15] = UNKNOWN  # nobody annotated the second
    (part,) = weights_of_targets([target])
    np.testing.assert_array_equal(part[:, 25], whole[:, 25])  # far from it, nothing changes
    np.testing.assert_allclose(part[:, 5], 1 + 10 * np.exp(-((1 + 11) ** 2) / 50), rtol=1e-5)
    assert (part[:, 5] < whole[:, 5]).all() and (part[:, 6:15] == 0).all()


def test_what_is_not_annotated_makes_no_second_cell() -> None:
    target = np.full((9, 40), UNKNOWN, np.uint8)
    target[:, 10:14], target[:, 14:16] = 0, 1
    (weights,) = weights_of_targets([target])
    np.testing.assert_array_equal(weights, target != UNKNOWN)


def test_an_isbi_sized_section_takes_well_under_a_second() -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((512, 512)), 12)
    labels = (np.abs(noise) > 0.2 * noise.std()).astype(np.uint8)
    start = time.perf_counter()
    weights = border_weights(labels)
    assert time.perf_counter() - start < 1.0
    np.testing.assert_allclose(weights, border_oracle(labels, 10.0, 5.0), atol=1.1e-5)


@pytest.mark.parametrize("labels", [np.zeros((4, 4), np.float32), np.zeros((2, 4, 4), np.uint8)])
def test_probabilities_and_stacks_are_errors(labels: NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match=r"border weights want integers \(y, x\)"):
        border_weights(labels)


def test_illegal_w0_and_sigma_are_errors() -> None:
    with pytest.raises(ValueError, match="weigh less than nothing"):
        border_weights(np.zeros((4, 4), np.uint8), w0=-1)
    with pytest.raises(ValueError, match="sigma_px=0 is no width"):
        border_weights(np.zeros((4, 4), np.uint8), sigma_px=0)
