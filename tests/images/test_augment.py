"""Training crops: what is drawn once, what is exact, and what noise may touch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from tessera.images.augment import Anchor, Augmentation, draw_sampling_map, jitter_intensity, rng_for, sample_crop

EVERYTHING = Augmentation(
    elastic_sigma_px=4.0,
    rotation_degrees=180.0,
    flips=True,
    rotate90=True,
    contrast=0.2,
    brightness=0.2,
    gamma=0.3,
    noise_sigma=0.1,
)


def section(shape: tuple[int, int] = (96, 120)) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32]]:
    """Image, labels and weights that all say the same: cells of 1, membrane of 0, weight 1 more than the label."""
    labels = (ndimage.gaussian_filter(np.random.default_rng(3).standard_normal(shape), 5) > 0).astype(np.uint8)
    return labels.astype(np.float32), labels, labels + np.float32(1)


def addresses(shape: tuple[int, int]) -> NDArray[np.float32]:
    """An image in which every pixel's value is its own address."""
    return np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 40))
def test_without_augmentation_a_crop_is_a_plain_slice(seed: int, height: int, width: int) -> None:
    image, labels, weights = addresses((40, 50)), *section((40, 50))[1:]
    cut, cut_labels, cut_weights = sample_crop(
        rng_for(seed, 0), image, labels, weights, (height, width), Augmentation()
    )
    y, x = divmod(int(cut[0, 0]), 50)
    place = np.s_[y : y + height, x : x + width]
    np.testing.assert_array_equal(cut, image[place])
    np.testing.assert_array_equal(cut_labels, labels[place])
    np.testing.assert_array_equal(cut_weights, weights[place])


@given(st.integers(0, 2**32), st.integers(2, 20), st.integers(2, 20))
def test_flips_and_quarter_turns_are_exact_for_any_crop_shape(seed: int, height: int, width: int) -> None:
    image, labels, weights = addresses((40, 50)), *section((40, 50))[1:]
    recipe = Augmentation(flips=True, rotate90=True)
    cut, cut_labels, cut_weights = sample_crop(rng_for(seed, 0), image, labels, weights, (height, width), recipe)
    y, x = np.divmod(cut.astype(int), 50)
    np.testing.assert_array_equal(cut, image[y, x])
    np.testing.assert_array_equal(cut_labels, labels[y, x])
    np.testing.assert_array_equal(cut_weights, weights[y, x])
    # Every pixel of one rectangle exactly once.
    assert len(np.unique(cut)) == height * width == (np.ptp(y) + 1) * (np.ptp(x) + 1)


def test_flips_and_quarter_turns_reach_all_eight_orientations() -> None:
    image, labels, weights = addresses((8, 8)), *section((8, 8))[1:]
    recipe = Augmentation(flips=True, rotate90=True)
    crops = [sample_crop(rng_for(0, i), image, labels, weights, (8, 8), recipe)[0] for i in range(100)]
    turned = [np.rot90(mirrored, k) for mirrored in (image, image.T) for k in range(4)]
    assert {crop.tobytes() for crop in crops} == {np.ascontiguousarray(crop).tobytes() for crop in turned}


def test_every_place_is_drawn_and_the_first_and_last_are_legal() -> None:
    image, labels, weights = addresses((6, 7)), *section((6, 7))[1:]
    firsts = {
        float(sample_crop(rng_for(1, i), image, labels, weights, (4, 4), Augmentation())[0][0, 0]) for i in range(400)
    }
    assert firsts == {float(y * 7 + x) for y in range(3) for x in range(4)}


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (5, 3), (20, 5)])
def test_a_section_smaller_than_the_crop_is_mirrored(shape: tuple[int, int]) -> None:
    image, labels, weights = addresses(shape), *section(shape)[1:]
    cut, cut_labels, _ = sample_crop(rng_for(0, 5), image, labels, weights, (16, 16), Augmentation())
    padded = np.pad(image, 20, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (16, 16))
    assert (windows == cut).all(axis=(2, 3)).any()
    np.testing.assert_array_equal(cut_labels, labels.ravel()[cut.astype(int)])


def test_image_labels_and_weights_share_one_field() -> None:
    """The ancestor drew one field for the image and another for its labels."""
    image, labels, weights = section()
    recipe = Augmentation(elastic_sigma_px=5.0, rotation_degrees=180.0, flips=True, rotate90=True)
    for index in range(20):
        cut, cut_labels, cut_weights = sample_crop(rng_for(7, index), image, labels, weights, (64, 64), recipe)
        for mask in (cut > 0.5, cut_weights > 1.5):
            assert (mask & (cut_labels > 0)).sum() > 0.97 * (mask | (cut_labels > 0)).sum()


def test_noise_never_touches_labels() -> None:
    """The ancestor added noise to the stacked image and labels."""
    image, labels, weights = section()
    quiet = Augmentation(elastic_sigma_px=4.0, rotation_degrees=30.0, flips=True)
    loud = Augmentation(
        elastic_sigma_px=4.0,
        rotation_degrees=30.0,
        flips=True,
        contrast=0.5,
        brightness=2.0,
        gamma=1.0,
        noise_sigma=3.0,
    )
    for index in range(10):
        still = sample_crop(rng_for(2, index), image, labels, weights, (48, 48), quiet)
        noisy = sample_crop(rng_for(2, index), image, labels, weights, (48, 48), loud)
        assert np.abs(noisy[0] - still[0]).mean() > 0.5
        np.testing.assert_array_equal(noisy[1], still[1])
        np.testing.assert_array_equal(noisy[2], still[2])


@given(st.integers(0, 2**32))
@settings(max_examples=25)
def test_labels_and_weights_keep_to_the_values_given(seed: int) -> None:
    image, labels, _ = section((40, 50))
    labels = np.where(labels, np.uint8(255), np.uint8(9))
    weights = np.where(labels == 9, np.float32(0), np.float32(11))
    crop = sample_crop(rng_for(seed, 0), image, labels, weights, (48, 48), EVERYTHING)
    assert set(np.unique(crop[1])) <= {9, 255}
    assert crop[2].min() >= 0
    assert crop[2].max() <= 11 + 1e-5
    assert [part.dtype for part in crop] == [np.float32, np.uint8, np.float32]


def test_rotated_corners_hold_the_sections_own_context() -> None:
    """A crop is cut after turning the section, not turned after cutting: only the section's edge is mirrored."""
    recipe = Augmentation(rotation_degrees=180, elastic_sigma_px=3.0)
    image = np.stack(np.mgrid[:400, :400], axis=2).astype(np.float32)  # each pixel's value is its place
    labels, weights = np.zeros((400, 400), np.uint8), np.ones((400, 400), np.float32)
    inside = 0
    for index in range(40):
        place = draw_sampling_map(rng_for(4, index), (400, 400), (64, 64), recipe)
        cut, _, _ = sample_crop(rng_for(4, index), image, labels, weights, (64, 64), recipe)
        if place.min() >= 2 and place.max() <= 397:
            inside += 1
            np.testing.assert_allclose(np.moveaxis(cut, 2, 0), place, atol=0.05)  # OpenCV rounds to 1/32 px
    assert inside > 20


def test_rotation_stays_within_its_limit() -> None:
    angles = []
    for index in range(300):
        at = draw_sampling_map(rng_for(0, index), (100, 100), (9, 9), Augmentation(rotation_degrees=20))
        along_x = at[:, 4, 8] - at[:, 4, 4]
        angles.append(np.degrees(np.arctan2(along_x[0], along_x[1])))
    assert -20.01 <= min(angles) < -15
    assert 15 < max(angles) <= 20.01


def test_the_same_index_is_cut_at_the_same_place_by_every_recipe() -> None:
    plain = draw_sampling_map(rng_for(3, 8), (200, 200), (33, 33), Augmentation())
    for recipe in (Augmentation(rotation_degrees=180), Augmentation(flips=True, rotate90=True)):
        np.testing.assert_allclose(
            draw_sampling_map(rng_for(3, 8), (200, 200), (33, 33), recipe)[:, 16, 16], plain[:, 16, 16]
        )


def test_elastic_spacing_takes_the_place_of_the_grid() -> None:
    def field(**recipe: Any) -> NDArray[np.float32]:
        return draw_sampling_map(rng_for(0, 0), (300, 300), (257, 257), Augmentation(elastic_sigma_px=5, **recipe))

    np.testing.assert_array_equal(field(elastic_spacing_px=64.0), field(elastic_grid=(5, 5)))
    assert not np.array_equal(field(elastic_spacing_px=64.0), field())


def test_intensity_jitter_acts_alike_on_raw_and_normalised_images() -> None:
    raw = ndimage.gaussian_filter(np.random.default_rng(0).random((64, 64), dtype=np.float32), 2) * 255
    mean, std = np.float32(130), np.float32(25)
    recipe = Augmentation(contrast=0.3, brightness=0.5, gamma=0.5, noise_sigma=0.2)
    first = (jitter_intensity(rng_for(0, 0), raw, recipe) - mean) / std
    then = jitter_intensity(rng_for(0, 0), (raw - mean) / std, recipe)
    np.testing.assert_allclose(first, then, atol=1e-3)


@pytest.mark.parametrize("name", ["contrast", "brightness", "gamma", "noise_sigma"])
def test_each_intensity_term_alone_changes_the_image_and_never_its_input(name: str) -> None:
    image = np.random.default_rng(0).random((32, 32), dtype=np.float32)
    before = image.copy()
    after = jitter_intensity(rng_for(0, 0), image, Augmentation(**{name: 0.4}))  # type: ignore[arg-type]
    assert not np.allclose(after, image, atol=1e-3)
    np.testing.assert_array_equal(image, before)


def test_noise_has_the_fraction_of_the_spread_asked_for() -> None:
    image = np.random.default_rng(0).normal(100, 30, (200, 200)).astype(np.float32)
    noise = jitter_intensity(rng_for(0, 0), image, Augmentation(noise_sigma=0.2)) - image
    assert abs(float(noise.std()) - 6) < 0.2
    assert abs(float(noise.mean())) < 0.2


def test_gamma_keeps_the_range_and_the_order_of_intensities() -> None:
    image = np.linspace(-3, 5, 64, dtype=np.float32).reshape(8, 8)
    after = jitter_intensity(rng_for(0, 1), image, Augmentation(gamma=0.8))
    assert (np.diff(after.ravel()) > 0).all()
    np.testing.assert_allclose([after.min(), after.max()], [-3, 5], atol=1e-5)


def test_a_blank_image_stays_blank_and_finite() -> None:
    blank = np.full((16, 16), 7, np.float32)
    recipe = Augmentation(contrast=0.3, brightness=0.5, gamma=0.5, noise_sigma=0.2)
    np.testing.assert_array_equal(jitter_intensity(rng_for(0, 0), blank, recipe), blank)


def test_channels_share_the_geometry() -> None:
    image, labels, weights = section()
    stack = np.stack([image] * 5, axis=2)
    recipe = Augmentation(elastic_sigma_px=4.0, rotation_degrees=180.0)
    cut, _, _ = sample_crop(rng_for(0, 0), stack, labels, weights, (48, 40), recipe)
    assert cut.shape == (48, 40, 5)
    np.testing.assert_array_equal(cut, np.repeat(cut[..., :1], 5, axis=2))


def test_the_same_seed_and_index_give_the_same_sample() -> None:
    first, again = (sample_crop(rng_for(5, 77), *section(), (64, 64), EVERYTHING) for _ in range(2))
    other = sample_crop(rng_for(5, 78), *section(), (64, 64), EVERYTHING)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0], other[0])


def test_another_process_draws_the_same_sample() -> None:
    script = "from tessera.images.augment import rng_for; print(rng_for(12, 345).integers(2**62, size=8).tolist())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(rng_for(12, 345).integers(2**62, size=8).tolist())


def test_streams_of_neighbouring_indices_and_seeds_are_independent() -> None:
    draws = np.stack([rng_for(seed, index).random(500) for seed in range(10) for index in range(40)])
    assert len(np.unique(draws)) == draws.size
    correlations = np.corrcoef(draws)[np.triu_indices(len(draws), 1)]
    assert np.abs(correlations).max() < 6 / np.sqrt(500)
    assert abs(float((draws**2).mean()) - 1 / 3) < 0.005


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -1), (2**64, 0), (0, 2**64)])
def test_seeds_and_indices_beyond_the_word_are_errors(seed: int, index: int) -> None:
    with pytest.raises(ValueError, match="does not fit the generator's 64-bit word"):
        rng_for(seed, index)


@pytest.mark.parametrize("turn", [{"rotate90": True}, {"rotation_degrees": 15.0}])
def test_unequal_voxel_sizes_refuse_turns(turn: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"y != x voxel sizes.*rotation_degrees=0, rotate90=False"):
        Augmentation(isotropic_in_plane=False, **turn)


def test_unequal_voxel_sizes_allow_flips() -> None:
    image, labels, weights = addresses((6, 9)), *section((6, 9))[1:]
    recipe = Augmentation(isotropic_in_plane=False, flips=True)
    crops = {sample_crop(rng_for(0, i), image, labels, weights, (6, 9), recipe)[0].tobytes() for i in range(60)}
    flipped = (image, image[::-1], image[:, ::-1], image[::-1, ::-1])
    assert crops == {np.ascontiguousarray(crop).tobytes() for crop in flipped}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("elastic_sigma_px", -1.0, "elastic_sigma_px=-1.0 is not an amount"),
        ("noise_sigma", float("nan"), "noise_sigma=nan is not an amount"),
        ("brightness", float("inf"), "brightness=inf is not an amount"),
        ("contrast", 1.0, "erases or inverts"),
        ("elastic_grid", (1, 3), "at least 2 nodes"),
        ("rotation_degrees", 360.0, "passes 180, which is any angle"),
    ],
)
def test_an_illegal_amount_is_an_error_that_names_a_legal_one(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**{field: value})


def test_an_empty_crop_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"crop=\(0, 8\) holds no pixel"):
        sample_crop(rng_for(0, 0), *section(), (0, 8), Augmentation())


def test_an_empty_section_is_an_error() -> None:
    image, labels = np.zeros((0, 8), np.float32), np.zeros((0, 8), np.uint8)
    with pytest.raises(ValueError, match="an axis of 0 voxels has nothing to mirror"):
        sample_crop(rng_for(0, 0), image, labels, image, (4, 4), Augmentation())


def test_what_a_margin_leaves_is_placed_everywhere_in_the_section() -> None:
    """Prediction goes to the section's very edge on mirrored context, so training must score pixels there too."""
    image, labels, weights = addresses((6, 7)), *section((6, 7))[1:]
    firsts = set()
    for index in range(400):
        cut, _, _ = sample_crop(rng_for(1, index), image, labels, weights, (10, 10), Augmentation(), margin=3)
        first = int(cut[3, 3])
        padded = np.pad(image, 3, mode="reflect")
        y, x = divmod(first, 7)
        np.testing.assert_array_equal(cut, padded[y : y + 10, x : x + 10])
        firsts.add(first)
    assert firsts == {y * 7 + x for y in range(3) for x in range(4)}


def test_a_crop_that_is_all_margin_is_refused() -> None:
    with pytest.raises(ValueError, match=r"crop=\(6, 6\) holds no pixel within its margin of 3.*such as"):
        sample_crop(rng_for(0, 0), *section(), (6, 6), Augmentation(), margin=3)


# Crops around a pixel


@given(st.integers(0, 2**32), st.integers(8, 40), st.integers(8, 40), st.integers(0, 39), st.integers(0, 49))
def test_a_crop_around_a_pixel_holds_it_and_stays_inside(seed: int, height: int, width: int, y: int, x: int) -> None:
    anchor = Anchor(y, x, min(height, width) / np.sqrt(2))
    recipe = Augmentation(flips=True, rotate90=True)
    image, labels, weights = addresses((40, 50)), *section((40, 50))[1:]
    cut, _, _ = sample_crop(rng_for(seed, 0), image, labels, weights, (height, width), recipe, anchor=anchor)
    assert 50 * y + x in cut and len(np.unique(cut)) == cut.size


def test_a_crop_turned_any_way_around_a_pixel_holds_it() -> None:
    anchor = Anchor(200, 210, 32 / np.sqrt(2))
    for index in range(200):
        map_ = draw_sampling_map(
            rng_for(1, index), (400, 400), (32, 32), Augmentation(rotation_degrees=180.0), anchor=anchor
        )
        assert np.hypot(map_[0] - 200, map_[1] - 210).min() < 1


def test_places_around_a_pixel_spread_over_the_reach() -> None:
    centres = np.array(
        [
            draw_sampling_map(rng_for(1, i), (99, 99), (9, 9), Augmentation(), anchor=Anchor(50, 40, 6.0))[:, 4, 4]
            for i in range(300)
        ]
    )
    assert centres.min(0).tolist() == [47, 37] and centres.max(0).tolist() == [53, 43]
