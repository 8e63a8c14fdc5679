"""A block's components are scipy's, numbered by first voxel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from oracles import whole_labels
from tessera.labels.components import components, label_block, section_components
from tessera.labels.seams import Connectivity

masks = arrays(bool, array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=8))


def in_order_of_first_voxel(labels):
    """Ids as they first appear in raster order."""
    ids, first = np.unique(labels, return_index=True)
    return ids[np.argsort(first)][ids[np.argsort(first)] > 0].tolist()


@pytest.mark.parametrize("connectivity", Connectivity)
@settings(max_examples=60, deadline=None)
@given(mask=masks)
def test_components_are_those_of_scipy_numbered_by_first_voxel(connectivity, mask):
    labels, count = label_block(mask, connectivity)
    expected, expected_count = whole_labels(mask, connectivity.value)
    assert labels.dtype == np.uint32
    assert count == expected_count
    assert in_order_of_first_voxel(labels) == list(range(1, count + 1))
    np.testing.assert_array_equal(labels, expected)  # scipy numbers by first voxel as well


@pytest.mark.parametrize("density", [0.1, 0.4, 0.6, 0.9])
@pytest.mark.parametrize("connectivity", Connectivity)
def test_large_blocks_keep_the_order_of_first_voxels(connectivity, density):
    mask = np.random.default_rng(5).random((12, 70, 90)) < density
    labels, count = label_block(mask, connectivity)
    assert in_order_of_first_voxel(labels) == list(range(1, count + 1))
    assert count == whole_labels(mask, connectivity.value)[1]


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 1, 9), (1, 9, 9), (3, 3, 3), (5, 1, 7), (7, 7, 7), (4, 6, 8)])
@pytest.mark.parametrize("connectivity", Connectivity)
def test_as_many_specks_as_fit_are_told_apart(connectivity, shape):
    mask = np.zeros(shape, bool)
    mask[::2, ::2, ::2] = True
    labels, count = label_block(mask, connectivity)
    assert count == mask.sum()
    assert labels[mask].tolist() == list(range(1, count + 1))


@settings(max_examples=30, deadline=None)
@given(masks, st.permutations(range(3)))
def test_memory_layout_changes_no_id(mask, axes):
    turned = np.ascontiguousarray(mask.transpose(axes)).transpose(np.argsort(axes))
    np.testing.assert_array_equal(components(turned, 18)[0], components(mask, 18)[0])
    np.testing.assert_array_equal(section_components(turned, 8)[0], section_components(mask, 8)[0])


def test_sections_never_join_and_are_numbered_on():
    labels, count = section_components(np.ones((3, 2, 2), bool), 4)
    assert count == 3
    np.testing.assert_array_equal(labels, np.repeat([1, 2, 3], 4).reshape(3, 2, 2))


@pytest.mark.parametrize("connectivity", Connectivity)
@pytest.mark.parametrize("shape", [(0, 3, 3), (2, 0, 3), (2, 3, 0)])
def test_an_empty_block_has_no_components(connectivity, shape):
    labels, count = label_block(np.zeros(shape, bool), connectivity)
    assert (labels.shape, labels.dtype, count) == (shape, np.uint32, 0)


@pytest.mark.parametrize(("find", "legal"), [(section_components, 4), (components, 6)])
def test_bad_masks_are_refused_with_a_reason(find, legal):
    with pytest.raises(ValueError, match=r"mask has shape \(4, 4\): a block is \(z, y, x\).*np.newaxis"):
        find(np.ones((4, 4), bool), legal)
    with pytest.raises(ValueError, match=r"mask is float32: components are those of a bool mask.*> 0.5"):
        find(np.ones((1, 4, 4), np.float32), legal)


@pytest.mark.parametrize(("find", "wrong", "legal"), [(section_components, 6, "4"), (components, 8, "6")])
def test_a_connectivity_of_the_other_kind_is_refused(find, wrong, legal):
    with pytest.raises(ValueError, match=rf"connectivity={wrong} is not one of .*Try {legal}"):
        find(np.ones((1, 4, 4), bool), wrong)
