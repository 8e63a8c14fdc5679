"""Flat input is answered from memory with the very voxels that the network gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bundles import make_bundle
from tessera.geometry.boxes import Box
from tessera.model.flat import remembering_flat
from tessera.model.predictor import Predict, load_predictor, predict_box


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b", "valid")


def counted(predict: Predict) -> tuple[Predict, list[tuple[int, ...]]]:
    calls: list[tuple[int, ...]] = []

    def predict_counted(tiles: np.ndarray) -> np.ndarray:
        calls.append(tiles.shape)
        return predict(tiles)

    return predict_counted, calls


def test_flat_tiles_are_the_network_s_own_output_at_its_phase(folder: Path) -> None:
    """A volume of two flat greys and tissue, cut at odd offsets: bit for bit what the network alone gives."""
    network, contract = load_predictor(folder)
    shape = (3, 90, 150)
    raw = np.full(shape, 40, np.uint8)
    raw[2] = 200
    raw[0, :30, :40] = np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)
    calling, calls = counted(network)
    core = Box((0, 3, 5), shape)
    alone = predict_box(network, lambda b: raw[b.slices], shape, core, (1, 16, 16), contract)
    remembered = predict_box(remembering_flat(calling), lambda b: raw[b.slices], shape, core, (1, 16, 16), contract)
    np.testing.assert_array_equal(remembered, alone)
    assert len(np.unique(alone[1])) > 1, "a flat input's output repeats with the pooling period: one value is not it"
    assert 2 < len(calls) < 40


def test_a_flat_value_is_computed_once_per_shape_and_never_changed_by_a_caller(folder: Path) -> None:
    calling, calls = counted(load_predictor(folder)[0])
    predict = remembering_flat(calling)
    tile = np.full((1, 44, 44, 1), 0.5, np.float32)
    first = predict(tile)
    assert predict(tile.copy()) is first and len(calls) == 1
    with pytest.raises(ValueError, match="read-only"):
        first[:] = 0
    predict(tile + 1)
    predict(np.full((1, 60, 44, 1), 0.5, np.float32))
    assert len(calls) == 3
    two = np.stack([tile[0], tile[0] + 1])
    np.testing.assert_array_equal(predict(two), predict(two.copy()))
    assert len(calls) == 4, "sections of different greys are flat, each for itself"
    almost = tile.copy()
    almost[0, 30, 30] += 1e-3
    predict(almost)
    predict(almost)
    assert len(calls) == 6


def test_memory_of_flat_outputs_is_bounded() -> None:
    calling, calls = counted(lambda tiles: tiles + 1)
    predict = remembering_flat(calling, most_bytes=2 * 4 * 4 * 4)
    tiles = [np.full((1, 4, 4, 1), grey, np.float32) for grey in range(4)]
    for tile in tiles:
        predict(tile)
    predict(tiles[3])
    predict(tiles[2])
    assert len(calls) == 4
    predict(tiles[0])
    assert len(calls) == 5
