"""Statistics of objects are those that counting voxel by voxel gives, however the volume is cut into blocks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from tessera.labels.objects import ObjectStats, merge_stats, object_stats

SHAPE = (3, 5, 6)
labels = arrays(np.uint64, SHAPE, elements=st.sampled_from([0, 0, 1, 2, 2**64 - 1]))


def _rows(found):
    columns = zip(found.voxels.tolist(), found.start.tolist(), found.stop.tolist(), found.sums.tolist(), strict=True)
    return dict(zip(found.ids.tolist(), columns, strict=True))


def _counted(volume, origin):
    rows = {}
    for name in set(volume.ravel().tolist()) - {0}:
        at = np.argwhere(volume == np.uint64(name)) + origin
        rows[name] = (len(at), at.min(axis=0).tolist(), (at.max(axis=0) + 1).tolist(), at.sum(axis=0).tolist())
    return rows


@given(labels, st.tuples(*[st.integers(0, 1000)] * 3))
def test_statistics_are_those_of_counting(volume, origin):
    assert _rows(object_stats(volume, origin)) == _counted(volume, origin)


@given(labels, st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6)))
def test_blocks_add_up_to_the_whole_in_any_order(volume, block):
    starts = [(z, y, x) for z in range(0, 3, block[0]) for y in range(0, 5, block[1]) for x in range(0, 6, block[2])]
    parts = [
        object_stats(volume[tuple(slice(a, a + n) for a, n in zip(start, block, strict=True))], start)
        for start in reversed(starts)
    ]
    merged = merge_stats([ObjectStats.from_arrays(part.to_arrays()) for part in parts])
    assert _rows(merged) == _counted(volume, 0)


def test_centroids_are_those_of_scipy_and_the_edge_is_seen():
    volume = np.zeros((4, 9, 9), np.uint32)
    volume[1:3, 2:5, 3:7], volume[1:3, 6:8, 0:2] = 5, 8
    found = object_stats(volume, (0, 0, 0))
    np.testing.assert_allclose(found.centroid, ndimage.center_of_mass(volume > 0, volume, [5, 8]))
    assert found.touches_border(volume.shape).tolist() == [False, True]
