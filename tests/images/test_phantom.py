"""The phantom is an instrument: its blocks fit together bit by bit, and it still reads what it read when frozen."""

import hashlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tessera.geometry.boxes import Box
from tessera.images.hashing import stream, value_noise, white_noise
from tessera.images.phantom import VOXEL_SIZE_NM, Phantom
from tessera.metrics.isbi import THRESHOLDS, finish, score_section

PARTS = ("raw", "membrane", "instances")
WHOLE = Box((0, 0, 0), (11, 150, 140))
SECTIONS = Box((0, 0, 0), (8, 512, 512))


@pytest.fixture(scope="module")
def whole():
    return Phantom().block(WHOLE)


@pytest.fixture(scope="module", params=[2012, 5])
def sections(request):
    return Phantom(request.param).block(SECTIONS)


def assert_is_crop(part, whole, box):
    for name in PARTS:
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[box.slices], err_msg=name)


@st.composite
def boxes_inside(draw, outer):
    """Boxes of at least one voxel inside `outer`."""
    start = tuple(draw(st.integers(a, b - 1)) for a, b in zip(outer.start, outer.stop, strict=True))
    return Box(start, tuple(draw(st.integers(a + 1, b)) for a, b in zip(start, outer.stop, strict=True)))


@given(box=boxes_inside(WHOLE))
@example(Box((10, 149, 139), (11, 150, 140)))
@example(Box((3, 61, 1), (9, 131, 66)))
@settings(max_examples=25, deadline=None)
def test_a_block_made_alone_is_bit_equal_to_the_same_block_of_the_whole(whole, box):
    assert_is_crop(Phantom().block(box), whole, box)


@given(
    origin=st.tuples(st.integers(0, 10**4), st.integers(0, 10**5), st.integers(0, 2**26 - 80)),
    seed=st.integers(0, 2**64 - 1),
    box=boxes_inside(Box((0, 0, 0), (5, 80, 80))),
)
@example(origin=(997, 100_003, 100_001), seed=2012, box=Box((1, 33, 7), (4, 70, 72)))
@example(origin=(2**26 - 5, 2**26 - 80, 2**26 - 80), seed=1, box=Box((2, 11, 13), (5, 80, 80)))
@settings(max_examples=10, deadline=None)
def test_a_block_far_away_is_bit_equal_to_the_same_block_of_its_surroundings(origin, seed, box):
    around = Phantom(seed).block(Box((0, 0, 0), (5, 80, 80)).shifted(origin))
    assert_is_crop(Phantom(seed).block(box.shifted(origin)), around, box)


def test_the_frozen_constants_have_not_moved():
    # A new digest is a new instrument: every score and benchmark measured on the old one has to be measured again.
    block = Phantom(seed=2012).block(Box((9, 1001, 100_003), (12, 1041, 100_053)))
    digest = hashlib.sha256()
    for name in PARTS:
        digest.update(getattr(block, name).astype(getattr(block, name).dtype.newbyteorder("<")).tobytes())
    assert digest.hexdigest() == "34fe92dc33c06e6dad32fcc9056371231fd9a79f4803c1a3fe250553d295914e"
    assert VOXEL_SIZE_NM == (50.0, 4.0, 4.0)


def test_noise_is_nearly_normal_and_bounded():
    # The bound is what lets a block look only so far for the seeds that it can feel.
    box = Box((0, -50, 10**6), (4, 150, 10**6 + 200))
    white = white_noise(box, stream(7, 0))
    assert abs(white.mean()) < 0.02
    assert abs(white.std() - 1) < 0.02
    assert abs(np.corrcoef(white[:, :, 1:].ravel(), white[:, :, :-1].ravel())[0, 1]) < 0.02
    assert np.abs(white).max() < 3.47
    smooth = value_noise(box, (1, 5, 8), stream(7, 0))
    assert smooth.dtype == np.float32
    np.testing.assert_array_equal(
        smooth[0, ::5, ::8], white_noise(Box((0, -10, 125_000), (1, 30, 125_025)), stream(7, 0))[0]
    )


def test_equal_seeds_make_equal_volumes_and_other_seeds_other_ones(whole):
    assert_is_crop(Phantom(seed=2012).block(WHOLE), whole, WHOLE)
    other = Phantom(seed=2013).block(WHOLE)
    for name in PARTS:
        assert (getattr(other, name) != getattr(whole, name)).mean() > 0.1, name


def test_membrane_covers_as_much_as_in_the_real_stack(sections):
    assert 0.18 <= sections.membrane.mean() <= 0.24


def test_smoothed_raw_scores_as_on_the_real_stack(sections):
    smoothed = ndimage.gaussian_filter(sections.raw / 255.0, (0, 3, 3))
    thresholds = THRESHOLDS[4:7]
    scores = finish([score_section(p, ~m, thresholds) for p, m in zip(smoothed, sections.membrane, strict=True)])
    best = scores.best()
    assert 0.80 <= best["v_rand"] <= 0.92
    # In the middle, so that neither a lower nor a higher threshold would have read more.
    assert best["threshold"] == thresholds[1]


def test_membrane_is_dark_and_sections_drift_mildly(sections):
    cell, membrane = sections.raw[~sections.membrane], sections.raw[sections.membrane]
    assert 50 < cell.mean() - membrane.mean() < 75
    assert 0.5 < sections.raw.mean((1, 2)).std() < 6
    assert np.isin(sections.raw, (0, 255)).mean() < 0.02


def test_instances_are_zero_on_membrane_alone(sections):
    assert (sections.raw.dtype, sections.membrane.dtype, sections.instances.dtype) == (np.uint8, bool, np.uint64)
    np.testing.assert_array_equal(sections.instances == 0, sections.membrane)


def test_membrane_parts_neurons_within_a_section(sections):
    for axis in (1, 2):
        here, there = np.moveaxis(sections.instances, axis, 0)[:-1], np.moveaxis(sections.instances, axis, 0)[1:]
        touching = (here != there) & (here > 0) & (there > 0)
        assert touching.sum() < 1e-5 * here.size


def test_a_neuron_keeps_its_id_through_sections(sections):
    here, there = sections.instances[:-1], sections.instances[1:]
    cell = (here > 0) & (there > 0)
    assert (here == there)[cell].mean() > 0.9
    first, last = np.unique(sections.instances[0]), np.unique(sections.instances[-1])
    assert 0.6 < np.isin(first, last).mean() < 1


def test_a_neuron_ends(whole):
    far_below = Phantom().block(WHOLE.shifted((90, 0, 0)))
    assert not np.isin(whole.instances[whole.instances > 0], far_below.instances).any()


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (Box((0, 0), (4, 4)), r"has 2 axes: a phantom is z, y, x\. Try Box"),
        (Box((0, 3, 0), (4, 3, 4)), r"\[0:4, 3:3, 0:4\] is empty"),
        (Box((0, -1, 0), (4, 3, 4)), r"leaves the phantom.*Try \[0:4, 0:3, 0:4\]"),
        (Box((0, 0, 2**26 - 1), (4, 3, 2**26 + 1)), r"leaves the phantom.*67108863:67108864\]"),
    ],
)
def test_boxes_that_are_no_block_are_refused_with_one_that_is(box, message):
    with pytest.raises(ValueError, match=message):
        Phantom().block(box)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_that_would_wrap_are_refused(seed):
    with pytest.raises(ValueError, match="does not fit 64 unsigned bits"):
        Phantom(seed)
