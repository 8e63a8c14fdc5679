"""The ISBI 2012 scores agree with their definitions, with known values on real sections, and in degenerate cases."""

import json
import pickle
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from oracles import fill_components, flood_first_in_first_out, four_neighbours, information_by_entropies, rand_by_pairs
from tessera.metrics.isbi import (
    BINARY_THRESHOLDS,
    JUST_BELOW_ONE,
    THRESHOLDS,
    IsbiScores,
    ThresholdMeans,
    agreement,
    connected_cells,
    finish,
    flood,
    score_section,
)
from volumes import isbi_dir

tiny_shapes = st.tuples(st.integers(1, 6), st.integers(1, 6))
tiny_masks = tiny_shapes.flatmap(lambda shape: arrays(bool, shape))
# Odd multiples of 0.05 lie between the thresholds, in every precision.
levels = st.sampled_from([0.0, *(k / 20 for k in range(1, 20, 2)), 1.0])


@st.composite
def tiny_sections(draw):
    shape = draw(tiny_shapes)
    truth = draw(arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 255])).filter(np.any))
    return draw(arrays(np.float64, shape, elements=levels)), truth


@st.composite
def paired_ids(draw):
    pairs = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4)), min_size=1, max_size=20))
    return [i for i, _ in pairs], [j for _, j in pairs]


def score_one(probability, truth, threshold=0.0):
    return finish([score_section(np.asarray(probability, float), np.asarray(truth), (threshold,))]).at(threshold)


@given(paired_ids())
def test_rand_scores_ask_every_pair_of_pixels(ids):
    got = agreement(np.array(ids[0]), np.array(ids[1]))
    assert (got.v_rand, got.v_rand_split, got.v_rand_merge) == pytest.approx(rand_by_pairs(*ids), abs=1e-12)


@given(paired_ids())
def test_v_info_is_the_normalised_mutual_information(ids):
    got = agreement(np.array(ids[0]), np.array(ids[1]))
    assert got.v_info == pytest.approx(information_by_entropies(*ids), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(tiny_sections())
def test_a_section_scores_as_its_definition_at_every_threshold(section):
    probability, truth = section
    scored = truth > 0
    true_ids = fill_components(scored)[scored].tolist()
    for threshold, row in zip(THRESHOLDS, score_section(probability, truth).rows, strict=True):
        cells = probability > threshold
        basins = fill_components(cells)
        flooded = flood(basins.astype(np.int32))[scored].tolist()
        rand = rand_by_pairs(true_ids, flooded)
        assert (row.flooded.v_rand, row.flooded.v_rand_split, row.flooded.v_rand_merge) == pytest.approx(rand)
        assert row.flooded.v_info == pytest.approx(information_by_entropies(true_ids, flooded), abs=1e-12)
        assert row.basin_rand == pytest.approx(rand_by_pairs(true_ids, basins[scored].tolist())[0])
        counts = (cells & scored).sum(), (cells & ~scored).sum(), (~cells & scored).sum()
        assert (row.true_positive, row.false_positive, row.false_negative) == counts


@settings(deadline=None)
@given(tiny_masks)
def test_cells_are_four_connected(mask):
    np.testing.assert_array_equal(connected_cells(mask), fill_components(mask))


@settings(max_examples=200, deadline=None)
@given(tiny_masks)
def test_flooding_keeps_basins_and_parts_any_two_by_a_line(mask):
    basins = connected_cells(mask)
    flooded = flood(basins)
    np.testing.assert_array_equal(flooded[mask], basins[mask])
    assert set(np.unique(flooded)) <= set(np.unique(basins)) | {0}
    for pixel in zip(*np.nonzero(flooded), strict=True):
        around = {int(flooded[q]) for q in four_neighbours(pixel, mask.shape)} - {0}
        assert around <= {int(flooded[pixel])}, "two segments touch without a line between them"


@settings(deadline=None)
@given(tiny_masks.filter(np.any))
def test_one_basin_floods_everything(mask):
    single = (connected_cells(mask) == 1).astype(np.int32)
    np.testing.assert_array_equal(flood(single), np.ones_like(single))


def test_no_basin_floods_nothing():
    assert not flood(np.zeros((3, 4), np.int32)).any()


def test_two_basins_meet_in_a_line_one_pixel_wide():
    basins = np.array([[1, 0, 0, 0, 2]] * 3, np.int32)
    np.testing.assert_array_equal(flood(basins), [[1, 1, 0, 2, 2]] * 3)


def test_the_truth_itself_scores_perfectly():
    truth = np.array([[7, 7, 0, 9], [7, 7, 0, 9], [0, 0, 0, 9]])
    got = score_one(truth > 0, truth)
    expected = {"v_rand": 1, "v_rand_split": 1, "v_rand_merge": 1, "v_info": 1, "rand_error": 0, "pixel_error": 0}
    assert got == pytest.approx(expected | {"threshold": 0})


def test_a_proposal_of_one_segment_has_no_information():
    truth = np.array([[1, 0, 2, 0, 3]])
    got = score_one(np.ones((1, 5)), truth)
    assert got["v_info"] == 0
    assert got["v_rand_split"] == 1
    assert got["v_rand_merge"] == pytest.approx(1 / 3)


def test_one_true_segment_found_whole_has_v_rand_one_and_v_info_zero():
    got = score_one(np.ones((4, 4)), np.ones((4, 4), int))
    assert (got["v_rand"], got["v_info"], got["rand_error"], got["pixel_error"]) == (1, 0, 0, 0)


def test_one_scored_pixel_is_defined():
    got = score_one([[0.0, 0.0]], [[0, 1]])
    assert (got["v_rand"], got["v_info"], got["rand_error"], got["pixel_error"]) == (1, 0, 0, 1)


def test_everything_membrane_makes_every_pixel_a_singleton():
    truth = np.array([[1, 1, 1, 1]])
    got = score_one(np.zeros((1, 4)), truth)
    assert got["v_rand_split"] == pytest.approx(1 / 4)
    assert got["v_rand_merge"] == 1
    assert got["v_rand"] == pytest.approx(2 / 5)
    assert got["v_info"] == 0  # the truth has no entropy to share
    assert got["pixel_error"] == 1


def test_segments_are_not_judged_on_true_membrane():
    truth = np.array([[1, 1, 0, 0, 2, 2]])
    there = np.array([[1, 1, 1, 0, 1, 1]])
    elsewhere = np.array([[1, 1, 0, 1, 1, 1]])
    a, b = score_one(there, truth), score_one(elsewhere, truth)
    assert (a["v_rand"], a["v_info"], a["rand_error"]) == (b["v_rand"], b["v_info"], b["rand_error"]) == (1, 1, 0)
    assert a["pixel_error"] == pytest.approx(1 - 8 / 9)


def test_true_segments_are_components_whatever_their_label_values():
    named = np.array([[1, 1, 0, 2, 5], [1, 1, 0, 2, 2]])
    proposal = np.array([[1, 1, 0, 1, 1], [1, 0, 0, 1, 1]])
    assert score_one(proposal, named) == score_one(proposal, (named > 0).astype(np.uint8) * 255)
    assert score_one(proposal, named) == score_one(proposal, named > 0)


def test_a_diagonal_does_not_join_true_segments():
    truth = np.array([[1, 0], [0, 1]])
    assert score_one(np.ones((2, 2)), truth)["v_rand_merge"] == pytest.approx(1 / 2)


@settings(max_examples=40, deadline=None)
@given(arrays(np.uint8, (5, 5)))
def test_a_proposal_scores_the_same_in_single_and_double_precision(stored):
    truth = np.array([[1, 1, 0, 2, 2]] * 5)
    single = score_section(stored.astype(np.float32) / np.float32(255), truth)
    assert single == score_section(stored / 255, truth)


def test_the_highest_threshold_keeps_certain_pixels_alone():
    probability = np.array([[1.0, 0.99999, 0.5]])
    row = score_section(probability, np.ones((1, 3), int), (JUST_BELOW_ONE,)).rows[0]
    assert (row.true_positive, row.false_negative) == (1, 2)


def random_sections(n=4):
    rng = np.random.default_rng(3)
    truth = [ndimage.gaussian_filter(rng.random((24, 24)), 2) > 0.5 for _ in range(n)]
    return [score_section(0.6 * t + 0.4 * rng.random(t.shape), t) for t in truth]


def test_the_order_of_sections_changes_no_bit():
    sections = random_sections()
    assert len({json.dumps(finish(order).to_dict()) for order in permutations(sections)}) == 1


def test_means_are_over_sections_and_pixels_are_pooled():
    sections = random_sections(2)
    got = finish(sections).at(0.5)
    rows = [s.rows[5] for s in sections]
    assert got["v_rand"] == pytest.approx(np.mean([r.flooded.v_rand for r in rows]))
    assert got["v_rand_split"] == pytest.approx(np.mean([r.flooded.v_rand_split for r in rows]))
    assert got["v_rand_merge"] == pytest.approx(np.mean([r.flooded.v_rand_merge for r in rows]))
    assert got["v_info"] == pytest.approx(np.mean([r.flooded.v_info for r in rows]))
    assert got["rand_error"] == pytest.approx(1 - np.mean([r.basin_rand for r in rows]))
    hits, misses = sum(r.true_positive for r in rows), sum(r.false_positive + r.false_negative for r in rows)
    assert got["pixel_error"] == pytest.approx(1 - 2 * hits / (2 * hits + misses))


def test_best_takes_each_metric_at_its_own_threshold_and_split_and_merge_at_that_of_v_rand():
    scores = finish(random_sections())
    best, rows = scores.best(), [scores.at(t) for t in THRESHOLDS]
    assert best["v_rand"] == max(r["v_rand"] for r in rows)
    assert best["v_info"] == max(r["v_info"] for r in rows)
    assert best["rand_error"] == min(r["rand_error"] for r in rows)
    assert best["pixel_error"] == min(r["pixel_error"] for r in rows)
    at_best = scores.at(scores.best_threshold)
    assert all(best[name] == at_best[name] for name in ("threshold", "v_rand", "v_rand_split", "v_rand_merge"))
    assert scores.thresholds == THRESHOLDS


def test_the_lowest_threshold_wins_a_tie():
    truth = np.array([[1, 0, 2]])
    assert finish([score_section((truth > 0).astype(float), truth)]).best_threshold == 0


def curve_of(*v_rand, v_info=0.9, pixel_error=0.05):
    thresholds = (*(i / 10 for i in range(10)), JUST_BELOW_ONE)
    rows = [ThresholdMeans(t, v, v, v, v_info, 0.1, pixel_error) for t, v in zip(thresholds, v_rand, strict=True)]
    return IsbiScores(4, tuple(rows))


def test_the_threshold_to_freeze_is_on_a_plateau_not_on_a_lucky_spike():
    curve = curve_of(0.2, 0.3, 0.5, 0.8, 0.93, 0.94, 0.93, 0.8, 0.95, 0.6, 0.5)
    assert (curve.best_threshold, curve.robust_threshold) == (0.8, 0.5)


def test_the_threshold_to_freeze_heeds_pixels_and_information_too():
    scores = finish(random_sections())
    pixels = min(scores.rows, key=lambda row: row.pixel_error).threshold
    assert abs(scores.robust_threshold - pixels) <= 0.2


def test_a_threshold_a_rounding_error_below_one_is_never_frozen():
    assert curve_of(*np.linspace(0.1, 0.99, 11)).robust_threshold == 0.9
    perfect = finish([score_section(np.array([[1.0, 0.0]]), np.array([[1, 0]]), BINARY_THRESHOLDS)])
    assert perfect.robust_threshold == 0


def test_section_scores_survive_pickling():
    section = random_sections(1)[0]
    assert pickle.loads(pickle.dumps(section)) == section


def test_scores_are_json_ready():
    scores = finish(random_sections(2))
    again = json.loads(json.dumps(scores.to_dict()))
    assert again == scores.to_dict()
    assert again["sections"] == 2
    assert [row["threshold"] for row in again["rows"]] == list(THRESHOLDS)


good = np.full((4, 4), 0.5)
cells = np.ones((4, 4), int)


@pytest.mark.parametrize(
    ("probability", "truth", "thresholds", "message"),
    [
        (np.full((2, 4, 4), 0.5), cells, THRESHOLDS, r"section is \(y, x\).*score_section\(stack\[z\]"),
        (np.full((4, 4), 200, np.uint8), cells, THRESHOLDS, "uint8: probabilities are floats.*255"),
        (good * 3, cells, THRESHOLDS, r"spans 1.5 to 1.5: it must lie in \[0, 1\]"),
        (good - 1, cells, THRESHOLDS, r"spans -0.5 to -0.5: it must lie in \[0, 1\]"),
        (np.where(np.eye(4), np.nan, good), cells, THRESHOLDS, "without NaN"),
        (good, np.ones((4, 5), int), THRESHOLDS, r"\(4, 5\) and cell_probability \(4, 4\)"),
        (good, np.ones((4, 4)), THRESHOLDS, "truth is float64: labels are integers"),
        (good, np.zeros((4, 4), int), THRESHOLDS, "no label > 0"),
        (good, cells, (), r"thresholds=\[\] must be ascending"),
        (good, cells, (0.5, 0.1), "must be ascending"),
        (good, cells, (0.5, 1.0), r"each in \[0, 1\)"),
    ],
)
def test_bad_sections_are_refused_with_a_reason(probability, truth, thresholds, message):
    with pytest.raises(ValueError, match=message):
        score_section(probability, truth, thresholds)


def test_no_sections_have_no_mean():
    with pytest.raises(ValueError, match="no sections arrived"):
        finish([])


def test_sections_scored_at_different_thresholds_are_not_mixed():
    with pytest.raises(ValueError, match="different thresholds"):
        finish([score_section(good, cells, (0.1,)), score_section(good, cells, (0.2,))])


def test_a_threshold_that_was_not_scored_is_not_made_up():
    with pytest.raises(ValueError, match=r"threshold=0.25 was not scored.*Try one of \[0.0\]"):
        finish([score_section(good, cells, (0.0,))]).at(0.25)


CROSS = ndimage.generate_binary_structure(2, 1)


def smoothed(raw, truth):
    return ndimage.gaussian_filter(raw / 255, 3)


PROPOSALS = {
    "the truth": (lambda raw, truth: truth, BINARY_THRESHOLDS, (1, 1, 0, 0)),
    "eroded": (
        lambda raw, truth: ndimage.binary_erosion(truth, CROSS, border_value=1),
        BINARY_THRESHOLDS,
        (0.99938, 0.99819, 0.03563, 0.03894),
    ),
    "dilated": (
        lambda raw, truth: ndimage.binary_dilation(truth, CROSS),
        BINARY_THRESHOLDS,
        (0.94727, 0.98587, 0.03412, 0.05273),
    ),
    "all cell": (lambda raw, truth: np.ones_like(truth), BINARY_THRESHOLDS, (0.09232, 0, 0.10893, 0.90768)),
    "smoothed raw": (smoothed, THRESHOLDS, (0.87999, 0.91871, 0.10877, 0.36634)),
}


def read_sections(sections):
    folder = isbi_dir()
    if folder is None:
        pytest.skip("the ISBI 2012 stacks are not here: set TESSERA_ISBI_DIR to their folder")
    tifffile = pytest.importorskip("tifffile")
    return [tifffile.imread(folder / f"train-{kind}.tif")[sections] for kind in ("volume", "labels")]


@pytest.mark.parametrize("name", PROPOSALS)
def test_real_sections_score_as_published_tables_would(name):
    raw, labels = read_sections(slice(24, 30))
    propose, thresholds, expected = PROPOSALS[name]
    proposals = [propose(image, truth > 0).astype(np.float32) for image, truth in zip(raw, labels, strict=True)]
    sections = [score_section(p, truth, thresholds) for p, truth in zip(proposals, labels, strict=True)]
    best = finish(sections).best()
    got = tuple(best[metric] for metric in ("v_rand", "v_info", "pixel_error", "rand_error"))
    assert got == pytest.approx(expected, abs=5e-4)


def test_flooding_scores_close_to_the_plain_rule_on_real_sections():
    raw, labels = (stack[0] for stack in read_sections(slice(24, 25)))
    truth = connected_cells(labels > 0)
    noisy, good = smoothed(raw, labels) > 0.5, ndimage.binary_erosion(labels > 0, CROSS, border_value=1)
    for cells, tolerance in ((noisy, 15e-4), (good, 1e-4)):
        basins, scored = connected_cells(cells), truth > 0
        ours, plain = (agreement(truth[scored], f(basins)[scored]) for f in (flood, flood_first_in_first_out))
        assert ours.v_rand == pytest.approx(plain.v_rand, abs=tolerance)


# Sections of which a part is known


@st.composite
def partly_known_sections(draw):
    probability, truth = draw(tiny_sections())
    known = draw(arrays(bool, truth.shape))
    y, x = draw(st.sampled_from(np.argwhere(truth > 0).tolist()))
    known[y, x] = True
    return probability, truth, known


@settings(max_examples=60, deadline=None)
@given(partly_known_sections(), st.randoms(use_true_random=False))
def test_nothing_under_unknown_pixels_changes_a_score(section, random):
    probability, truth, known = section
    other = np.random.default_rng(random.randrange(2**32))
    elsewhere = np.where(known, probability, other.random(truth.shape))
    guessed = np.where(known, truth, other.integers(0, 3, truth.shape))
    assert score_section(elsewhere, guessed, known=known) == score_section(probability, truth, known=known)


@settings(max_examples=60, deadline=None)
@given(tiny_sections(), st.integers(1, 4), st.integers(1, 4))
def test_a_section_known_in_a_rectangle_scores_as_the_rectangle(section, above, before):
    probability, truth = section
    wide = ((above, 5 - above), (before, 5 - before))
    known = np.pad(np.ones(truth.shape, bool), wide)
    surrounded = np.pad(probability, wide, mode="reflect" if min(truth.shape) > 5 else "edge")
    padded = np.pad(truth, wide, constant_values=1)
    assert score_section(surrounded, padded, known=known) == score_section(probability, truth)


def test_known_parts_of_one_cell_may_be_joined_through_unknown_area():
    truth, known = np.array([[5, 5, 5, 5, 5]]), np.array([[True, True, False, True, True]])
    whole = finish([score_section(np.ones((1, 5)), truth, (0.0,), known)]).at(0.0)
    assert (whole["v_rand"], whole["rand_error"], whole["pixel_error"]) == (1, 0, 0)


def test_no_flood_passes_through_unknown_area():
    known = np.array([[True, True, False, True, True]])
    probability = np.array([[1.0, 1.0, 1.0, 0.0, 0.0]])
    apart = finish([score_section(probability, np.ones((1, 5), int), (0.0,), known)]).at(0.0)
    # The right part has no basin: two singletons, A = 1/4 + 1/4, B = AB = 1/4 + (1/2) / 4.
    assert apart["v_rand"] == pytest.approx(2 * 0.375 / (0.5 + 0.375))


def test_a_section_without_a_known_cell_is_an_error():
    with pytest.raises(ValueError, match=r"no label > 0 at a known pixel.*annotate a cell in it"):
        score_section(np.ones((1, 2)), np.array([[0, 1]]), known=np.array([[True, False]]))


@pytest.mark.parametrize("known", [np.ones((1, 3), bool), np.ones((1, 2), np.uint8)])
def test_what_is_known_is_a_bool_for_each_pixel(known):
    with pytest.raises(ValueError, match=r"known is \w+ of shape .*Give a bool for each pixel of truth"):
        score_section(np.ones((1, 2)), np.array([[0, 1]]), known=known)
