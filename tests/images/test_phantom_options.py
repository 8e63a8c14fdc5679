"""A harder phantom is still an instrument: its blocks fit together, and each option changes what it says it changes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tessera.geometry.boxes import Box
from tessera.images.phantom import Phantom, PhantomBlock
from tessera.images.phantom_damage import FARTHEST_PX, FIELD_PX, fold_of, tear_of
from tessera.images.phantom_options import HARDER, PLAIN, PhantomOptions

PARTS = ("raw", "membrane", "instances", "unknown")
# Around the corner of four fields, near their damaged middles, and far from voxel 0.
WHOLE = Box((7, 180, 200), (12, 330, 345))
MIDDLE = Box((0, 150, 150), (4, 360, 360))
EVERYTHING = replace(HARDER, tears=1.0, folds=1.0)


@cache
def _block(box: Box, **chosen: Any) -> PhantomBlock:
    return Phantom(2012, PhantomOptions(**chosen)).block(box)


def _changed(**chosen: Any) -> np.ndarray:
    changed: np.ndarray = _block(MIDDLE, **chosen).raw != _block(MIDDLE).raw
    return changed


@st.composite
def boxes_inside(draw: st.DrawFn, outer: Box) -> Box:
    start = tuple(draw(st.integers(a, b - 1)) for a, b in zip(outer.start, outer.stop, strict=True))
    return Box(start, tuple(draw(st.integers(a + 1, b)) for a, b in zip(start, outer.stop, strict=True)))


@cache
def _everything(seed: int) -> PhantomBlock:
    return Phantom(seed, EVERYTHING).block(WHOLE)


@given(box=boxes_inside(WHOLE), seed=st.sampled_from([2012, 5]))
@example(Box((9, 181, 201), (11, 300, 330)), 2012)
@example(Box((11, 329, 344), (12, 330, 345)), 5)
@settings(max_examples=12, deadline=None)
def test_a_block_of_a_harder_phantom_is_bit_equal_to_the_same_block_of_the_whole(box: Box, seed: int) -> None:
    part, whole = Phantom(seed, EVERYTHING).block(box), _everything(seed)
    at = box.relative_to(WHOLE.start).slices
    for name in PARTS:
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[at], err_msg=name)


@pytest.mark.parametrize("start", range(0, 26, 3))
def test_organelles_are_whole_wherever_a_block_begins(start: int) -> None:
    crowded = Box((10, 60, 270), (12, 150, 400))
    whole = _block(crowded, mitochondria=True, vesicles=True).raw
    assert (whole != _block(crowded).raw).mean() > 0.15
    box = Box((11, 70 + start, 290 + start), (12, 90 + 2 * start, 380 - start))
    part = Phantom(2012, PhantomOptions(mitochondria=True, vesicles=True)).block(box).raw
    np.testing.assert_array_equal(part, whole[box.relative_to(crowded.start).slices])


def test_the_end_of_a_mitochondrion_is_drawn_where_its_middle_is_far_off() -> None:
    around = Box((8, 0, 0), (12, 256, 256))
    whole = _block(around, mitochondria=True).raw
    body = np.argwhere(whole != _block(around).raw)
    phantom = Phantom(2012, PhantomOptions(mitochondria=True))
    for corner in body[:: len(body) // 60]:
        box = Box(tuple(map(int, corner)), tuple(map(int, corner + 1))).shifted(around.start)
        np.testing.assert_array_equal(phantom.block(box).raw.ravel(), whole[tuple(corner)], err_msg=str(box))


def test_blocks_join_at_the_corner_of_fields_far_from_the_origin() -> None:
    corner = Box((501, 40 * FIELD_PX - 30, 70 * FIELD_PX - 40), (503, 40 * FIELD_PX + 50, 70 * FIELD_PX + 30))
    whole = Phantom(3, EVERYTHING).block(corner)
    box = Box((502, 40 * FIELD_PX - 7, 70 * FIELD_PX - 3), (503, 40 * FIELD_PX + 44, 70 * FIELD_PX + 9))
    part = Phantom(3, EVERYTHING).block(box)
    for name in PARTS:
        at = box.relative_to(corner.start).slices
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[at], err_msg=name)


def test_the_plain_phantom_has_nothing_unknown() -> None:
    assert not _block(MIDDLE).unknown.any()
    assert Phantom(2012) == Phantom(2012, PLAIN)


@pytest.mark.parametrize("organelle", ["mitochondria", "vesicles"])
def test_organelles_lie_inside_cells_and_leave_labels_alone(organelle: str) -> None:
    plain, harder = _block(MIDDLE), _block(MIDDLE, **{organelle: True})
    for name in ("membrane", "instances", "unknown"):
        np.testing.assert_array_equal(getattr(harder, name), getattr(plain, name), err_msg=name)
    changed = _changed(**{organelle: True})
    assert 0.01 < changed.mean() < 0.4
    assert not (changed & plain.membrane).any()


def test_mitochondria_are_dark_and_span_sections() -> None:
    box = Box((0, 0, 0), (8, 256, 256))
    plain, harder = _block(box).raw.astype(int), _block(box, mitochondria=True).raw.astype(int)
    body = np.abs(harder - plain) > 15
    assert 0.01 < body.mean() < 0.12
    assert plain[body].mean() - harder[body].mean() > 30
    # From section to section a body lies where it lay; by chance it would for its share of the section.
    stays = (body[1:] & body[:-1]).sum() / body[1:].sum()
    assert stays > 5 * body.mean()


def test_vesicles_are_clustered_and_in_one_section_each() -> None:
    rings = _changed(vesicles=True)
    tiles = rings[:, :200, :200].reshape(len(rings), 8, 25, 8, 25).mean((2, 4))
    assert (tiles == 0).mean() > 0.5
    assert tiles.std() > 1.5 * tiles.mean() > 0.01
    dense = np.maximum(tiles[1:], tiles[:-1]).repeat(25, 1).repeat(25, 2) > 0.05
    above, below = rings[1:, :200, :200][dense], rings[:-1, :200, :200][dense]
    assert (above & below).mean() < 2 * above.mean() * below.mean()


def test_a_tear_hides_tissue_and_leaves_its_labels() -> None:
    plain, torn = _block(MIDDLE), _block(MIDDLE, tears=1.0)
    np.testing.assert_array_equal(torn.instances, plain.instances)
    np.testing.assert_array_equal(torn.raw[~torn.unknown], plain.raw[~torn.unknown])
    assert (torn.unknown.mean((1, 2)) > 0.005).all()
    assert torn.unknown.mean() < 0.2
    assert np.median(torn.raw[torn.unknown]) > 225


def test_a_fold_moves_raw_and_labels_together() -> None:
    plain, folded = _block(MIDDLE), _block(MIDDLE, folds=1.0)
    known = ~folded.unknown
    moved = known & (folded.instances != plain.instances)
    assert 0.02 < moved.mean() < 0.5

    def contrast(block: PhantomBlock) -> float:
        raw = folded.raw[moved].astype(float)
        return float(raw[~block.membrane[moved]].mean() - raw[block.membrane[moved]].mean())

    assert contrast(folded) > 50
    assert contrast(plain) < 25, "the labels of where the tissue was do not fit any more"


def test_the_band_of_a_fold_is_dark_and_unknown() -> None:
    plain, folded = _block(MIDDLE), _block(MIDDLE, folds=1.0)
    assert (folded.unknown.mean((1, 2)) > 0.005).all()
    assert folded.unknown.mean() < 0.15
    assert folded.raw[folded.unknown].mean() < 0.5 * plain.raw.mean()
    assert abs(folded.raw[~folded.unknown].mean() - plain.raw.mean()) < 5


def test_folds_stay_inside_their_fields_and_reach() -> None:
    box = Box((0, 0, 0), (6, FIELD_PX, FIELD_PX))
    fold = fold_of(box, 9, 1.0)
    assert fold is not None
    _, y, x = np.indices(box.shape)
    farthest = np.maximum(np.abs(fold.y - y), np.abs(fold.x - x))
    assert 8 < farthest.max() <= FARTHEST_PX
    edge = np.ones(box.shape[1:], bool)
    edge[10:-10, 10:-10] = False
    assert not farthest[:, edge].any()
    assert 0 <= min(fold.y.min(), fold.x.min()) <= max(fold.y.max(), fold.x.max()) < FIELD_PX


@pytest.mark.parametrize("damage", [fold_of, tear_of])
def test_damage_is_as_frequent_as_asked(damage: Any) -> None:
    middle = FIELD_PX // 2
    hits = sum(
        damage(Box((z, middle, middle), (z + 1, middle + 1, middle + 1)), 1, 0.2) is not None for z in range(500)
    )
    assert 70 < hits < 130
    assert damage(MIDDLE, 1, 0.0) is None


def test_drift_is_slow_and_only_scales_each_section() -> None:
    box = Box((0, 0, 0), (16, 64, 64))
    plain, drifted = _block(box), _block(box, drift=1.0)
    np.testing.assert_array_equal(drifted.instances, plain.instances)
    lines = []
    for before, after in zip(plain.raw.astype(float) - 128, drifted.raw.astype(float) - 128, strict=True):
        inside = (np.abs(before) < 127) & (np.abs(after) < 127)
        gain, offset = np.polyfit(before[inside], after[inside], 1)
        # Both were rounded once: half a grey value each.
        assert np.abs(gain * before + offset - after)[inside].max() < 0.6 + 0.6 * gain
        lines.append((gain, offset))
    drift = np.array(lines)
    assert (drift.std(0) > (0.05, 8)).all()
    assert (np.abs(drift[1:] - drift[:-1]).mean(0) < 0.5 * np.abs(drift[7:] - drift[:-7]).mean(0)).all()


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({"tears": 1.5}, r"tears=1\.5 is no chance.*Try tears=0\.05"),
        ({"folds": -0.1}, r"folds=-0\.1 is no chance"),
        ({"drift": 3.0}, r"drift=3\.0 must lie in \[0, 2\].*Try drift=1"),
        ({"drift": float("nan")}, "drift=nan must lie in"),
    ],
)
def test_options_that_cannot_be_are_refused(chosen: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        PhantomOptions(**chosen)  # type: ignore[arg-type]
