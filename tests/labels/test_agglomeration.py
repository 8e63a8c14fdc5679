"""Merges follow the membrane between cells; a lower threshold takes the first of a higher one's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.labels.agglomeration import AgglomerationRule, agglomerated, average_linkage, linked
from tessera.labels.region_graph import BINS, RegionGraph, no_contacts


def graph_of(rows):
    """From (a, b, across, area, mean probability in steps)."""
    a, b, across, area, mean = (np.array(column) for column in zip(*rows, strict=True))
    histogram = area[:, None] * (np.arange(BINS) == (mean // 8)[:, None])  # all of a contact alike
    return RegionGraph(a.astype(np.uint64), b.astype(np.uint64), across.astype(bool), area, area * mean, histogram)


@st.composite
def graphs(draw):
    pairs = draw(st.sets(st.tuples(st.integers(1, 8), st.integers(1, 8)).filter(lambda p: p[0] < p[1]), min_size=1))
    return [(*pair, False, draw(st.integers(1, 5)), draw(st.integers(0, 255))) for pair in sorted(pairs)]


def slowly(rows, most):
    """Each time every pair of cells is weighed anew from the original contacts."""
    cells = {i: {i} for row in rows for i in row[:2]}
    scores = []
    while True:
        weighed = []
        for p, q in ((p, q) for p in cells for q in cells if p < q):
            both = cells[p] | cells[q]
            between = [r for r in rows if {r[0], r[1]} <= both and (r[0] in cells[p]) != (r[1] in cells[p])]
            if between:
                weighed.append((sum(r[3] * r[4] for r in between) / sum(r[3] for r in between), p, q))
        if not weighed or min(weighed)[0] >= most * 255:
            return scores, cells
        score, p, q = min(weighed)
        scores.append(score / 255)
        cells[p] |= cells.pop(q)


def sets_of(roots):
    return {frozenset(np.flatnonzero(roots == root).tolist()) for root in set(roots[1:].tolist())}


@settings(max_examples=150)
@given(graphs(), st.sampled_from([0.2, 0.5, 0.9]))
def test_merges_are_those_of_weighing_every_pair_each_time(rows, most):
    # Equal scores may be merged in another order there: they are told apart by area, which is made odd.
    rows = [(a, b, across, 2 * k + 101, mean) for k, (a, b, across, _, mean) in enumerate(rows)]
    scores, cells = slowly(rows, most)
    merges = average_linkage(graph_of(rows), most)
    if len(set(scores)) == len(scores) and len({r[4] for r in rows}) == len(rows):
        np.testing.assert_allclose(merges.score, np.maximum.accumulate(scores) if scores else [])
        roots = agglomerated(graph_of(rows), np.ones(9, np.int64), AgglomerationRule(most, False, 1.0))
        assert {cell for cell in sets_of(roots) if len(cell) > 1} == {
            frozenset(c) for c in cells.values() if len(c) > 1
        }


@settings(max_examples=60)
@given(graphs(), st.randoms(use_true_random=False))
def test_the_order_of_contacts_changes_nothing(rows, random):
    first, second = (average_linkage(graph_of(r), 1.0) for r in (rows, random.sample(rows, len(rows))))
    np.testing.assert_array_equal(np.stack([first.a, first.b]), np.stack([second.a, second.b]))
    np.testing.assert_array_equal(first.score, second.score)


@settings(max_examples=60)
@given(graphs(), st.floats(0, 1))
def test_a_lower_threshold_takes_the_first_merges_of_a_higher_one(rows, threshold):
    low, high = average_linkage(graph_of(rows), threshold), average_linkage(graph_of(rows), 1.0)
    np.testing.assert_array_equal(low.up_to(threshold), high.up_to(threshold))


def test_contacts_of_merged_cells_are_weighed_together():
    """1 and 2 are one; 3 touches 2 through a small hole, and 1 along a long membrane."""
    rows = [(1, 2, False, 50, 0), (2, 3, False, 5, 20), (1, 3, False, 100, 250)]
    roots = agglomerated(graph_of(rows), np.ones(4, np.int64), AgglomerationRule(0.5, False, 1.0))
    assert roots.tolist() == [0, 1, 1, 3]


@pytest.mark.parametrize(
    ("evidence", "share", "expected"),
    [
        ("mean", 0.2, 1),
        ("mean", 0.6, 2),
        ("median", 0.4, 1),
        ("median", 0.6, 2),
        ("upper_quartile", 0.2, 1),
        ("upper_quartile", 0.4, 2),
    ],
)
def test_quantiles_forgive_membrane_along_a_part_of_a_contact(evidence, share, expected):
    """100 voxels of contact, of which a share is certain membrane: one cell below 0.5, else two."""
    membrane = round(100 * share)
    histogram = np.zeros((1, BINS), np.int64)
    histogram[0, [0, -1]] = 100 - membrane, membrane
    ids = (np.array([i], np.uint64) for i in (1, 2))
    graph = RegionGraph(*ids, np.zeros(1, bool), np.array([100]), np.array([255 * membrane]), histogram)
    roots = agglomerated(graph, np.ones(3, np.int64), AgglomerationRule(0.5, False, 1.0, evidence))
    assert len(set(roots[1:].tolist())) == expected


def test_sections_are_merged_first_and_linked_then():
    """Fragments 1 and 2 of a section are one cell, as is 3 below them; 4 lies beside, and is barely covered."""
    rows = [
        (1, 2, False, 20, 10),
        (1, 3, True, 30, 20),
        (2, 3, True, 40, 20),
        (2, 4, True, 9, 20),
        (3, 4, False, 20, 250),
    ]
    sizes = np.array([0, 40, 50, 80, 60])
    assert agglomerated(graph_of(rows), sizes, AgglomerationRule(0.5, True, 0.6)).tolist() == [0, 1, 1, 1, 4]
    assert agglomerated(graph_of(rows), sizes, AgglomerationRule(0.05, True, 0.6)).tolist() == [0, 1, 1, 3, 4]
    everything = AgglomerationRule(0.5, True, 0.1)
    assert agglomerated(graph_of(rows), sizes, everything).tolist() == [0, 1, 1, 1, 1]


def test_what_lies_behind_membrane_is_not_linked_however_much_it_covers():
    rows = [(1, 2, True, 100, 200)]
    assert len(linked(graph_of(rows), np.array([0, 100, 100]), 0.5, 0.5)) == 0
    assert linked(graph_of(rows), np.array([0, 100, 100]), 0.5, 0.9).tolist() == [[1, 2]]


def test_fragments_without_a_contact_stay_themselves():
    assert agglomerated(no_contacts(), np.ones(4, np.int64), AgglomerationRule(0.5, True, 0.5)).tolist() == [0, 1, 2, 3]


def test_contacts_of_other_fragments_are_refused():
    with pytest.raises(ValueError, match="name the fragment 9, but there are sizes of 3"):
        agglomerated(graph_of([(1, 9, False, 1, 1)]), np.ones(4, np.int64), AgglomerationRule(0.5, True, 0.5))


@pytest.mark.parametrize(("threshold", "share"), [(1.1, 0.5), (-0.1, 0.5), (0.5, 0.0), (0.5, 1.1)])
def test_rules_that_mean_nothing_are_refused(threshold, share):
    with pytest.raises(ValueError, match=r"must be a probability and share="):
        AgglomerationRule(threshold, True, share)
