"""Scores of instances are those of skimage.metrics and of CREMI's own formula, however the volume is cut."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.metrics import adapted_rand_error, variation_of_information

from oracles import adapted_rand_of_cremi
from tessera.metrics.contingency import count_overlaps, merge_tables
from tessera.metrics.instances import adapted_rand, best_threshold, finish, scan

SHAPE = (3, 6, 7)


@st.composite
def volumes(draw):
    """Truth and proposal of few segments, of which the truth has at least one."""
    truth = draw(arrays(np.int64, SHAPE, elements=st.integers(0, 5)))
    truth[0, 0, 0] = 3
    return truth, draw(arrays(np.int64, SHAPE, elements=st.integers(0, 5)))


@given(volumes())
def test_variation_of_information_is_that_of_skimage(pair):
    truth, proposal = pair
    found = finish(count_overlaps(truth, proposal))
    split, merge = variation_of_information(truth, proposal, ignore_labels=[0])
    assert found.voi_split == pytest.approx(split, abs=1e-9)
    assert found.voi_merge == pytest.approx(merge, abs=1e-9)
    assert found.voi == pytest.approx(split + merge, abs=1e-9)


@given(volumes())
def test_adapted_rand_error_by_the_convention_of_skimage_is_that_of_skimage(pair):
    found = adapted_rand(count_overlaps(*pair), "skimage")
    with np.errstate(invalid="ignore"):
        expected = adapted_rand_error(*pair, ignore_labels=(0,))
    if math.isfinite(expected[0]):  # skimage divides by zero where no segment has two voxels
        assert found.error == pytest.approx(expected[0], abs=1e-9)
    if np.isfinite(expected).all():
        # By its documentation precision is over the pairs of the proposal, by its code over those of the truth.
        assert sorted((found.precision, found.recall)) == pytest.approx(sorted(expected[1:]), abs=1e-9)


@given(volumes())
def test_adapted_rand_error_by_the_convention_of_cremi_is_that_of_its_code(pair):
    found = adapted_rand(count_overlaps(*pair), "cremi")
    expected = adapted_rand_of_cremi(*pair)
    assert (found.error, found.precision, found.recall) == pytest.approx(expected, abs=1e-9)


@given(volumes(), st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 7)))
def test_blocks_of_any_size_give_the_scores_of_the_whole(pair, block):
    truth, proposal = pair
    spans = [[slice(a, a + step) for a in range(0, n, step)] for n, step in zip(SHAPE, block, strict=True)]
    boxes = [(z, y, x) for z in spans[0] for y in spans[1] for x in spans[2]]
    tables = [count_overlaps(truth[box], proposal[box]) for box in boxes]
    assert finish(merge_tables(tables[::-1])) == finish(count_overlaps(truth, proposal))


def test_the_truth_itself_is_perfect_whatever_its_ids():
    truth = np.random.default_rng(0).integers(0, 9, SHAPE)
    renamed = np.where(truth > 0, 2**63 + truth.astype(np.uint64) * 1000, 0).astype(np.uint64)
    found = finish(count_overlaps(truth, renamed))
    assert found.voi == found.rand_cremi.error == found.rand_skimage.error == found.cremi_score == 0
    assert found.worst_splits == found.worst_merges == ()
    assert found.true_segments == found.proposed_segments == 8


def test_a_split_and_a_merge_cost_what_they_must_and_are_named():
    # Four true segments of 4 voxels: 1 is halved, 2 and 3 are one, 4 is right.
    truth = np.repeat([1, 2, 3, 4], 4)
    proposal = np.array([5, 5, 6, 6, 7, 7, 7, 7, 7, 7, 7, 7, 8, 8, 8, 8])
    found = finish(count_overlaps(truth, proposal))
    assert found.voi_split == pytest.approx(4 / 16)  # one bit for a quarter of the voxels
    assert found.voi_merge == pytest.approx(8 / 16)  # one bit for half of them
    (split,), (merge,) = found.worst_splits, found.worst_merges
    assert (split.id, split.voxels, split.parts, split.largest) == (1, 4, 2, ((5, 2), (6, 2)))
    assert (merge.id, merge.voxels, merge.parts, merge.largest) == (7, 8, 2, ((2, 4), (3, 4)))
    assert found.cremi_score == pytest.approx(math.sqrt(found.rand_cremi.error * 0.75))


def test_scores_are_json_and_each_rand_error_says_its_convention():
    told = json.loads(json.dumps(finish(count_overlaps(np.array([1, 1, 2]), np.array([1, 2, 2]))).to_dict()))
    assert {"voi_split", "voi_merge", "cremi_score", "adapted_rand_error_cremi", "adapted_rand_error_skimage"} <= set(
        told
    )


def test_sizes_past_what_int64_can_square_do_not_overflow():
    table = count_overlaps(np.array([1, 2]), np.array([1, 1]))
    huge = type(table)(table.truth, table.proposal, np.array([2**40, 2**40]))
    assert adapted_rand(huge, "skimage").precision == pytest.approx(0.5)


def test_nothing_to_score_is_refused():
    with pytest.raises(ValueError, match="none of the 3 voxels compared has a known true segment"):
        finish(count_overlaps(np.zeros(3, int), np.ones(3, int)))


# Thresholds of an agglomeration


@given(volumes(), st.lists(st.lists(st.integers(1, 3), min_size=5, max_size=5), min_size=1, max_size=3))
def test_a_scan_of_merged_fragments_needs_their_table_alone(pair, merges):
    truth, fragments = pair
    names = [np.array([0, *merge]) for merge in merges]
    rows = scan(count_overlaps(truth, fragments), enumerate(names))
    assert [row.scores for row in rows] == [finish(count_overlaps(truth, name[fragments])) for name in names]


def test_the_best_threshold_is_that_of_the_least_information_lost():
    truth, fragments = np.repeat([1, 2], 4), np.repeat([1, 2, 3, 4], 2)
    cells = {
        0.1: [0, 1, 2, 3, 4],
        0.3: [0, 1, 1, 3, 3],
        0.4: [0, 1, 1, 3, 3],
        0.5: [0, 1, 1, 3, 3],
        0.9: [0, 1, 1, 1, 1],
    }
    rows = scan(count_overlaps(truth, fragments), [(t, np.array(names)) for t, names in cells.items()])
    assert [row.scores.voi for row in rows] == pytest.approx([1, 0, 0, 0, 1])
    assert best_threshold(rows) == 0.4
    with pytest.raises(ValueError, match="no thresholds were scored"):
        best_threshold([])


def test_cells_of_other_fragments_are_refused():
    with pytest.raises(ValueError, match=r"proposed id 9, but names end at 2: they are those of another"):
        scan(count_overlaps(np.array([1]), np.array([9])), [(0.5, np.array([0, 1, 1]))])
