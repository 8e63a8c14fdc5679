"""Fragments of blocks with enough context are those of the whole volume; touch alone joins none."""

from itertools import product

import numpy as np
import pytest
from scipy import ndimage

from tessera.labels.overlaps import OverlapRule, face_offsets, overlap_edges, planes_of, rim_of
from tessera.labels.watershed import WatershedRule, fragments_of, renumbered, smoothed_distance
from volumes import walls

SECTIONS = WatershedRule(0.5, True, (50.0, 4.0, 4.0), 8.0)
VOLUME = WatershedRule(0.5, False, (10.0, 5.0, 5.0), 8.0)


def test_two_touching_discs_are_two_fragments_that_fill_everything():
    y, x = np.indices((40, 70))
    cell = (np.hypot(y - 20, x - 20) < 17) | (np.hypot(y - 20, x - 50) < 17)
    labels = fragments_of(np.where(cell, 0, 1).astype(np.float32)[None], np.ones((1, 40, 70), bool), SECTIONS)[0]
    assert len(np.unique(labels)) == 2 and labels.min() == 1
    assert (labels[:, :34] == labels[20, 20]).all() and (labels[:, 36:] == labels[20, 50]).all()


def test_distances_are_measured_in_nanometers():
    cell = np.ones((5, 9, 9), bool)
    cell[2, 4, 4] = False
    rule = WatershedRule(0.5, False, (50.0, 4.0, 6.0), 0.0)
    distance = smoothed_distance(cell, rule)
    assert [distance[3, 4, 4], distance[2, 5, 4], distance[2, 4, 5], distance[2, 5, 5]] == pytest.approx(
        [50, 4, 6, np.hypot(4, 6)]
    )


def test_sections_share_no_fragment_and_what_is_not_valid_has_none():
    membrane = walls((3, 40, 50))
    valid = np.ones(membrane.shape, bool)
    valid[1, :20], valid[2] = False, False
    labels = fragments_of(membrane, valid, SECTIONS)
    assert ((labels > 0) == valid).all()
    assert not set(np.unique(labels[0])) & set(np.unique(labels[1][valid[1]]))


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_a_block_without_membrane_is_one_fragment_and_one_of_membrane_alone_is_none(level):
    labels = fragments_of(np.full((1, 8, 9), level, np.float32), np.ones((1, 8, 9), bool), SECTIONS)
    assert (labels == (1 if level == 0 else 0)).all()


def cut(membrane, rule, block, halo):
    """Every block's core and planes, by position."""
    whole, found = membrane.shape, {}
    for at in product(*(range(-(-n // b)) for n, b in zip(whole, block, strict=True))):
        core = [(k * b, min((k + 1) * b, n)) for k, b, n in zip(at, block, whole, strict=True)]
        read = [(max(a - h, 0), min(b + h, n)) for (a, b), h, n in zip(core, halo, whole, strict=True)]
        box = tuple(slice(*edges) for edges in read)
        labels = fragments_of(membrane[box], np.ones(membrane[box].shape, bool), rule)
        inside = tuple(slice(a - r, b - r) for (a, b), (r, _) in zip(core, read, strict=True))
        local, old = renumbered(labels[inside])
        names = np.zeros(int(labels.max()) + 1, np.uint32)
        names[old] = np.arange(len(old))
        planes = planes_of(names[labels], inside, membrane[box], per_section=rule.per_section)
        found[at] = (tuple(slice(*edges) for edges in core), local, planes)
    return found


def stitched(membrane, rule, block, halo, share=0.5):
    """Blocks joined one pair after the other, by renaming."""
    found = cut(membrane, rule, block, halo)
    out, names, total = np.zeros(membrane.shape, int), {}, 0
    for at, (core, local, _) in found.items():
        names[at] = np.concatenate([[0], np.arange(total + 1, total + 1 + local.max())])
        total += int(local.max())
        out[core] = names[at][local]
    for at, step in product(found, face_offsets(rule.per_section)):
        to = tuple(a + s for a, s in zip(at, step, strict=True))
        if to in found:
            for a, b in overlap_edges(OverlapRule(share), found[at][2], found[to][2], step):
                old, new = names[to][b], names[at][a]
                out[out == old] = new
                for table in names.values():
                    table[table == old] = new
    return out


def agreeing(ours, whole):
    """Share of voxels whose fragment is the whole's, where each of ours stands for the one it shares most with."""
    right = 0
    for i in np.unique(ours):
        theirs, counts = np.unique(whole[ours == i], return_counts=True)
        j = theirs[counts.argmax()]
        back, sizes = np.unique(ours[whole == j], return_counts=True)
        right += counts.max() if back[sizes.argmax()] == i else 0
    return right / whole.size


@pytest.mark.parametrize(
    ("rule", "shape", "block", "halo"),
    [(SECTIONS, (2, 150, 170), (1, 60, 64), (0, 60, 60)), (VOLUME, (24, 60, 70), (10, 32, 30), (12, 24, 24))],
)
def test_stitched_fragments_are_those_of_the_whole_volume(rule, shape, block, halo):
    membrane = walls(shape, rule.voxel_size)
    whole = fragments_of(membrane, np.ones(shape, bool), rule)
    ours = stitched(membrane, rule, block, halo)
    assert len(np.unique(whole)) > 15
    assert agreeing(ours, whole) >= 0.999


def test_too_little_context_joins_no_strangers():
    """Fragments are cut at faces then; but two that lie in different cells stay two."""
    membrane = walls((1, 150, 170))
    cells = ndimage.label(membrane[0] < 0.3)[0]
    ours = stitched(membrane, SECTIONS, (1, 40, 40), (0, 4, 4))[0]
    for i in np.unique(ours):
        inside, counts = np.unique(cells[(ours == i) & (cells > 0)], return_counts=True)
        assert len(counts) == 0 or counts.max() > 0.9 * counts.sum(), (i, inside, counts)


def planes(own, beyond, membrane=0.0):
    """Planes of two blocks at a face along x: (own, beyond) as each sees them, one row of a section."""
    a_own, a_beyond = (np.array([row], np.uint32) for row in own)
    b_beyond, b_own = (np.array([row], np.uint32) for row in beyond)
    seen = np.full((2, *a_own.shape), membrane, np.float32)
    return {"x_high_own": a_own, "x_high_beyond": a_beyond, "x_high_membrane": seen}, {
        "x_low_own": b_own,
        "x_low_beyond": b_beyond,
        "x_low_membrane": seen,
    }


@pytest.mark.parametrize(
    ("own", "beyond", "membrane", "expected"),
    [
        (([3, 3], [3, 3]), ([1, 1], [1, 1]), 0.0, [[3, 1]]),  # both see one
        (([3, 3], [3, 3]), ([1, 1], [1, 1]), 1.0, [[3, 1]]),  # and agree wholly, be it membrane or not
        (([3, 3], [0, 0]), ([0, 0], [1, 1]), 0.0, []),  # they touch, and share nothing
        (([3, 3], [3, 7]), ([1, 1], [1, 1]), 0.0, [[3, 1]]),  # three of four
        (([3, 3], [3, 7]), ([1, 1], [1, 1]), 0.8, []),  # the same in membrane
        (([3, 7], [3, 7]), ([1, 1], [1, 1]), 0.0, [[3, 1], [7, 1]]),  # half of it each
    ],
)
def test_fragments_are_joined_by_what_they_share(own, beyond, membrane, expected):
    a, b = planes(own, beyond, membrane)
    assert overlap_edges(OverlapRule(0.5), a, b, (0, 0, 1)).tolist() == expected
    assert rim_of(a).tolist() == sorted({i for row in own for i in row} - {0})


def test_planes_that_do_not_fit_are_refused():
    a, b = planes(([1], [1]), ([1, 1], [1, 1]))
    with pytest.raises(ValueError, match="their voxels cannot be paired"):
        overlap_edges(OverlapRule(0.5), a, b, (0, 0, 1))


@pytest.mark.parametrize(
    ("change", "message"), [({"membrane": 0.0}, "membrane=0.0"), ({"smoothing": -1.0}, "voxel_size=")]
)
def test_rules_that_mean_nothing_are_refused(change, message):
    told = {"membrane": 0.5, "per_section": True, "voxel_size": (50.0, 4.0, 4.0), "smoothing": 8.0}
    with pytest.raises(ValueError, match=message):
        WatershedRule(**told | change)
