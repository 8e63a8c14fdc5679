"""Promises about the statistics of seams: what they see, what they do not mind, and that blocks add up."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tessera.geometry.blocks import BlockGrid
from tessera.geometry.boxes import Box
from tessera.metrics.seam_verdict import SeamAudit, finish
from tessera.metrics.seams import REACH, AxisPlanes, BlockSeams, block_seams, plane_scores, worst_spot

SHAPE, BLOCK, PERIOD = (24, 256, 384), (12, 128, 128), 8


def _probability(seed: int, shape: tuple[int, ...] = SHAPE, along_z: float = 1) -> np.ndarray:
    """Log odds of membrane-like blobs, most of them saturated, with a grain of their own in each voxel."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.standard_normal(shape), (along_z, 3, 3))
    return 6 * smooth / smooth.std() + 0.2 * rng.standard_normal(shape)


def _bytes(odds: np.ndarray) -> np.ndarray:
    return np.rint(255 / (1 + np.exp(-odds))).astype(np.uint8)


def _blocks(
    voxels: np.ndarray, valid: np.ndarray | None = None, origin: int = 0, tile: int = 64
) -> list[tuple[int, BlockSeams]]:
    found = []
    for index, box in BlockGrid(voxels.shape, BLOCK).boxes():
        axes = [
            AxisPlanes(a, b, n, tuple(range(a + step, b, step)), period, origin if period > 1 else 0)
            for a, b, n, step, period in zip(
                box.start, box.stop, voxels.shape, (1, tile, tile), (1, PERIOD, PERIOD), strict=True
            )
        ]
        seen = box.grown((1, REACH, REACH)).clipped(Box.whole(voxels.shape))
        found.append(
            (index, block_seams(voxels[seen.slices], seen.start, axes, None if valid is None else valid[seen.slices]))
        )
    return found


def _audit(voxels: np.ndarray, **chosen: int) -> SeamAudit:
    blocks = _blocks(voxels, **chosen)
    return finish(lambda: blocks, BLOCK[0])


def _stepped(odds: np.ndarray, axis: int, every: int, size: float, seed: int = 0) -> np.ndarray:
    """Each stretch of `every` voxels shifted by an amount of its own."""
    shifts = size * np.random.default_rng(seed).standard_normal(-(-odds.shape[axis] // every))
    along = [1, 1, 1]
    along[axis] = -1
    return odds + np.repeat(shifts, every)[: odds.shape[axis]].reshape(along)


def test_smooth_content_without_faults_passes_and_every_question_is_asked() -> None:
    found = _audit(_bytes(_probability(1)))
    assert found.verdict == "passed" and found.exceeded == []
    assert set(found.scores) == {"faces", "block faces", "worst face", "sections"}
    assert max(found.scores["faces"], found.scores["block faces"], found.scores["sections"]) < 3


@pytest.mark.parametrize("axis", [1, 2])
def test_a_weak_step_at_all_tile_faces_is_found_together(axis: int) -> None:
    found = _audit(_bytes(_stepped(_probability(2), axis, 64, 0.5)))
    assert found.scores["faces"] > 4 and found.verdict == "failed"
    assert {face.axis for face in found.worst[:4]} == {"zyx"[axis]}


def test_one_bad_face_is_found_by_itself_and_listed_first_with_its_place() -> None:
    odds = _probability(3)
    odds[12:, 128:, 320:] += 1.0  # the last tile of a block
    found = _audit(_bytes(odds))
    worst = found.worst[0]
    assert (worst.block, worst.axis, worst.plane, worst.kind) == (11, "x", 320, "tile")
    assert "worst face" in found.exceeded and worst.score > found.limits["worst face"] > found.worst[2].score


def test_a_step_between_blocks_alone_is_found_by_block_faces() -> None:
    found = _audit(_bytes(_stepped(_probability(4), 1, 128, 0.4, seed=2)))
    assert found.scores["block faces"] > found.scores["faces"] and found.verdict == "failed"


def test_the_grid_that_pooling_leaves_is_no_seam_at_any_offset() -> None:
    odds = _probability(5)
    odds[:, :, 3::PERIOD] += 0.6  # a comb in every period, faces and others alike, as seen from voxel 5 of the raw
    for origin in (5, 0):
        assert _audit(_bytes(odds), origin=origin).verdict == "passed"


def test_a_phase_that_is_mistaken_would_be_a_false_alarm() -> None:
    """That faces are held against planes of their own phase is what makes the grid above pass."""
    odds = _probability(5)
    odds[:, :, ::PERIOD] += 0.6
    gridded, plain = _blocks(_bytes(odds)), _blocks(_bytes(_probability(5)))
    mistaken = [
        (i, BlockSeams(own.faces, other.references, own.sections))
        for (i, own), (_, other) in zip(gridded, plain, strict=True)
    ]
    assert finish(lambda: gridded, BLOCK[0]).verdict == "passed"
    assert finish(lambda: mistaken, BLOCK[0]).verdict == "failed"


def test_blocks_that_differ_between_sections_are_found_and_one_odd_section_is_not() -> None:
    odds = _probability(6, (60, 128, 128), along_z=3)
    odd = odds.copy()
    odd[12] += 1.5  # the first section of a block, unlike both of its neighbours
    assert "sections" not in _audit(_bytes(odd)).exceeded
    assert "sections" in _audit(_bytes(_stepped(odds, 0, 12, 2.0, seed=3))).exceeded


def test_saturated_and_invalid_voxels_say_nothing() -> None:
    flat = np.where(_probability(7) > 0, 255, 0).astype(np.uint8)[:, :1, :1] * np.ones(SHAPE, np.uint8)
    assert not any(face.runs for _, block in _blocks(flat) for face in block.faces)
    odds = _probability(8)
    step = odds.copy()
    step[:12, 128:] += 5.0
    valid = np.ones(SHAPE, bool)
    valid[:12] = False
    masked = _blocks(_bytes(step), valid)
    assert finish(lambda: masked, BLOCK[0]).verdict == "passed"
    assert _audit(_bytes(step)).verdict == "failed"


def test_blocks_survive_the_ledger_and_their_order_does_not_matter() -> None:
    blocks = _blocks(_bytes(_stepped(_probability(9), 2, 64, 0.1)))
    kept = [(i, BlockSeams.from_plain(block.to_plain())) for i, block in reversed(blocks)]
    one, other = finish(lambda: blocks, BLOCK[0]), finish(lambda: kept, BLOCK[0])
    assert one.verdict == other.verdict and one.worst[0].plane == other.worst[0].plane
    assert other.scores == pytest.approx(one.scores, abs=0.01)


def test_scores_lie_between_minus_one_and_one_and_mirror_with_the_axis() -> None:
    voxels = _bytes(_stepped(_probability(10, (2, 64, 48)), 1, 32, 3.0))
    planes = np.array([16, 32, 40])
    runs, totals, squares = plane_scores(voxels, planes).T
    assert (np.abs(totals) <= runs).all() and (squares <= runs).all() and totals[1] > 0.3 * runs[1] > totals[0]
    np.testing.assert_allclose(plane_scores(voxels[:, ::-1], 64 - planes)[:, 1], totals, rtol=1e-4)


def test_the_spot_shown_is_where_the_step_is() -> None:
    odds = _probability(11, (3, 2 * REACH, 320))
    odds[2, REACH:, 160:240] += 3.0
    z, along = worst_spot(_bytes(odds))
    assert z == 2 and 160 <= along < 240


def test_an_output_of_one_block_and_tile_asks_nothing() -> None:
    found = finish(lambda: [(0, BlockSeams())], 4)
    assert found.verdict == "not applicable" and not found.scores and not found.worst
