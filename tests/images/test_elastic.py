"""Elastic fields and the one function that warps an image, its labels and its weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from tessera.images.elastic import elastic_field, grid_for_spacing, warp_together


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def identity_map(shape: tuple[int, int], shift: tuple[float, float] = (0, 0)) -> NDArray[np.float32]:
    return (np.mgrid[: shape[0], : shape[1]] + np.array(shift)[:, None, None]).astype(np.float32)


def blobs(shape: tuple[int, int] = (160, 160)) -> NDArray[np.uint8]:
    """Smooth shapes of 0 and 1, some tens of pixels wide."""
    return (ndimage.gaussian_filter(rng().standard_normal(shape), 8) > 0).astype(np.uint8)


def positions(shape: tuple[int, int] = (160, 160), sigma_px: float = 6.0) -> NDArray[np.float32]:
    return identity_map(shape) + elastic_field(rng(), shape, sigma_px)


def test_image_labels_and_weights_share_one_field() -> None:
    """The ancestor warped image and labels by two draws: labels then belonged to other pixels."""
    labels = blobs()
    image = weights = labels.astype(np.float32)
    warped_image, warped_labels, warped_weights = warp_together(image, labels, weights, positions())

    assert (warped_labels != labels).mean() > 0.05  # the field moves something
    for mask in (warped_image > 0.5, warped_weights > 0.5):
        overlap = (mask & (warped_labels > 0)).sum() / (mask | (warped_labels > 0)).sum()
        assert overlap > 0.98
    # Away from label edges there is no rounding to differ by: image and labels agree alike.
    flat = ndimage.maximum_filter(warped_labels, 11) == ndimage.minimum_filter(warped_labels, 11)
    np.testing.assert_allclose(warped_image[flat], warped_labels[flat], atol=1e-3)


def test_displacements_along_y_and_x_are_independent() -> None:
    fields = np.stack([elastic_field(np.random.default_rng(s), (5, 5), 10.0) for s in range(2000)])
    dy, dx = fields[:, 0, ::2, ::2].ravel(), fields[:, 1, ::2, ::2].ravel()
    assert abs(np.corrcoef(dy, dx)[0, 1]) < 0.05
    assert not np.array_equal(fields[0, 0], fields[0, 1])


@given(st.tuples(st.integers(2, 6), st.integers(2, 6)), st.integers(1, 9), st.integers(0, 2**32))
@settings(max_examples=30)
def test_the_field_takes_the_drawn_vectors_at_its_nodes(grid: tuple[int, int], step: int, seed: int) -> None:
    shape = ((grid[0] - 1) * step + 1, (grid[1] - 1) * step + 1)
    field = elastic_field(np.random.default_rng(seed), shape, 10.0, grid)
    drawn = np.random.default_rng(seed).normal(0, 10.0, (2, *grid))
    assert field.dtype == np.float32
    np.testing.assert_allclose(field[:, ::step, ::step], drawn, atol=1e-3)


def test_the_field_is_the_bicubic_spline_of_its_nodes() -> None:
    field = elastic_field(rng(), (50, 70), 10.0)
    nodes = rng().normal(0, 10.0, (2, 3, 3))
    grid = np.meshgrid(np.linspace(0, 2, 50), np.linspace(0, 2, 70), indexing="ij")
    for axis in range(2):
        oracle = ndimage.map_coordinates(nodes[axis], grid, order=3, mode="mirror")
        np.testing.assert_allclose(field[axis], oracle, atol=1e-4)


def test_the_drawn_vectors_have_the_sigma_asked_for() -> None:
    nodes = elastic_field(rng(), (80, 80), 10.0, grid=(80, 80))
    assert abs(float(nodes.std()) - 10) < 0.3
    assert abs(float(nodes.mean())) < 0.3


def test_the_identity_map_changes_nothing() -> None:
    labels = blobs((40, 30))
    image = rng().standard_normal((40, 30)).astype(np.float32)
    weights = rng().random((40, 30), dtype=np.float32)
    for interpolation in ("cubic", "linear"):
        warped = warp_together(image, labels, weights, identity_map((40, 30)), interpolation)  # type: ignore[arg-type]
        for after, before in zip(warped, (image, labels, weights), strict=True):
            assert after.dtype == before.dtype
            np.testing.assert_array_equal(after, before)


@given(st.tuples(st.integers(1, 9), st.integers(1, 9)), st.tuples(st.integers(-40, 40), st.integers(-40, 40)))
def test_positions_beyond_the_section_are_mirrored_as_often_as_needed(
    shape: tuple[int, int], shift: tuple[int, int]
) -> None:
    image = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
    labels, weights = image.astype(np.uint8), image + 1
    padded = np.pad(image, 60, mode="reflect")[60 + shift[0] :, 60 + shift[1] :][:20, :20]
    warped = warp_together(image, labels, weights, identity_map((20, 20), shift))
    for after, expected in zip(warped, (padded, padded, padded + 1), strict=True):
        np.testing.assert_allclose(after, expected, atol=1e-4)


def test_linear_sampling_agrees_with_scipy() -> None:
    image = ndimage.gaussian_filter(rng().standard_normal((50, 60)), 2).astype(np.float32)
    where = (rng().random((2, 64, 64)) * 150 - 40).astype(np.float32)
    warped, _, weights = warp_together(
        image, np.zeros((50, 60), np.uint8), np.ones((50, 60), np.float32), where, "linear"
    )
    np.testing.assert_allclose(warped, ndimage.map_coordinates(image, where, order=1, mode="mirror"), atol=1e-4)
    np.testing.assert_allclose(weights, 1, atol=1e-6)


def test_cubic_sampling_keeps_a_smooth_image_within_a_hundredth() -> None:
    image = np.sin(np.arange(100, dtype=np.float32) / 6)[:, None] * np.ones((1, 40), np.float32)
    where = identity_map((80, 20), shift=(10.37, 10.0))
    warped, _, _ = warp_together(image, np.zeros(image.shape, np.uint8), np.ones_like(image), where)
    np.testing.assert_allclose(warped[:, 0], np.sin((np.arange(80) + 10.37) / 6), atol=0.01)


def test_labels_keep_only_values_that_existed() -> None:
    labels = np.where(blobs(), np.uint8(200), np.uint8(3))
    _, warped, _ = warp_together(labels.astype(np.float32), labels, np.ones(labels.shape, np.float32), positions())
    assert set(np.unique(warped)) == {3, 200}


def test_unknown_pixels_stay_unknown() -> None:
    labels = blobs()
    weights = np.where(labels, np.float32(2), np.float32(0))
    _, warped_labels, warped = warp_together(weights, labels, weights, positions())
    # Where the label was read from an unknown pixel, its neighbours' weights do not make it known.
    assert (warped[warped_labels == 0] == 0).all()
    assert (warped[warped_labels == 1] > 0).all()


@pytest.mark.parametrize("channels", [1, 3, 5, 9])
@pytest.mark.parametrize("interpolation", ["cubic", "linear"])
def test_every_channel_is_warped_as_it_would_be_alone(channels: int, interpolation: str) -> None:
    image = rng().standard_normal((40, 40, channels)).astype(np.float32)
    labels, weights = np.zeros((40, 40), np.uint8), np.ones((40, 40), np.float32)
    where = positions((40, 40), sigma_px=3.0)
    stacked, _, _ = warp_together(image, labels, weights, where, interpolation)  # type: ignore[arg-type]
    assert stacked.shape == image.shape
    for c in range(channels):
        alone, _, _ = warp_together(image[..., c], labels, weights, where, interpolation)  # type: ignore[arg-type]
        np.testing.assert_allclose(stacked[..., c], alone, atol=1e-5)


def test_sections_past_opencvs_limit_are_warped() -> None:
    image = np.zeros((4, 40_000), np.float32)
    image[:, 39_000] = 7
    where = identity_map((4, 8), shift=(0, 38_996))
    warped, _, _ = warp_together(image, image.astype(np.uint8), np.ones_like(image), where)
    np.testing.assert_array_equal(warped, image[:, 38_996:39_004])


def test_a_grid_by_spacing_has_nodes_that_far_apart() -> None:
    assert grid_for_spacing((513, 1025), 256) == (3, 5)
    assert grid_for_spacing((64, 64), 256) == (2, 2)
    with pytest.raises(ValueError, match="no distance between grid nodes"):
        grid_for_spacing((64, 64), 0)


@pytest.mark.parametrize("sigma_px", [-1.0, float("nan"), float("inf")])
def test_a_sigma_that_is_no_displacement_is_an_error(sigma_px: float) -> None:
    with pytest.raises(ValueError, match="is not a displacement"):
        elastic_field(rng(), (8, 8), sigma_px)


def test_a_grid_of_one_node_is_an_error() -> None:
    with pytest.raises(ValueError, match="too few nodes"):
        elastic_field(rng(), (8, 8), 1.0, grid=(1, 3))


def test_arrays_that_do_not_cover_one_section_are_an_error() -> None:
    image, labels = np.zeros((8, 8), np.float32), np.zeros((8, 9), np.uint8)
    with pytest.raises(ValueError, match="do not cover one section"):
        warp_together(image, labels, image, identity_map((4, 4)))


def test_another_dtype_is_an_error_that_names_the_conversion() -> None:
    image, labels = np.zeros((8, 8), np.float32), np.zeros((8, 8), np.int64)
    with pytest.raises(ValueError, match=r"labels are int64 where uint8 is promised.*np\.uint8"):
        warp_together(image, labels, image, identity_map((4, 4)))  # type: ignore[arg-type]
