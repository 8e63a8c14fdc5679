"""Out of memory: TensorFlow's own error halves the tile, and the voxels stay the same."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from bundles import make_bundle
from tessera.geometry.boxes import Box
from tessera.model import predictor
from tessera.model.memory import TileMemory, TileMemoryError, halved, telling_of_memory
from tessera.model.predictor import load_predictor, predict_box, predict_volume

SHAPE = (2, 48, 64)


def _short_of_memory(predict: Any, most_voxels: int) -> Any:
    """A network that asks TensorFlow for a petabyte where its input is larger than `most_voxels`."""

    def greedy(tiles: NDArray[np.float32]) -> Any:
        if tiles.size > most_voxels:
            tf.zeros((2**48,))
        return predict(tiles)

    return greedy


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b")


def test_tensorflow_s_error_is_told_as_a_lack_of_memory() -> None:
    greedy = telling_of_memory(_short_of_memory(lambda tiles: tiles, 0))
    with pytest.raises(TileMemoryError, match=r"no memory for the network on 1 x 8 x 8 voxels: ResourceExhaustedError"):
        greedy(np.zeros((1, 8, 8, 1), np.float32))


def test_other_errors_of_the_network_are_left_alone() -> None:
    def wrong(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        raise ValueError("wrong shape")

    with pytest.raises(ValueError, match="wrong shape"):
        telling_of_memory(wrong)(np.zeros((1, 8, 8, 1), np.float32))


def test_where_memory_runs_out_smaller_tiles_give_the_same_voxels(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    volume = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    network, contract = load_predictor(bundle)
    whole = predict_volume(network, volume, contract)
    real = predictor.valid_predict
    monkeypatch.setattr(predictor, "valid_predict", lambda *given: _short_of_memory(real(*given), 64 * 64))
    small, _ = load_predictor(bundle)
    memory = TileMemory((2, 64, 64), [axis.period for axis in contract.network.arithmetic.axes])

    def run(tile: tuple[int, ...]) -> NDArray[np.float32]:
        return predict_box(small, lambda box: volume[box.slices], SHAPE, Box.whole(SHAPE), tile, contract)

    with caplog.at_level(logging.WARNING, "tessera"):
        np.testing.assert_allclose(memory.fit(run), whole, atol=1e-5, rtol=0)
    assert memory.halvings == caplog.text.count("the tile is halved") >= 2
    caplog.clear()
    np.testing.assert_allclose(memory.fit(run), whole, atol=1e-5, rtol=0)
    assert not caplog.text, "the next block begins with the tile that fits"


def test_where_the_smallest_tile_is_too_large_the_error_is_told() -> None:
    def run(tile: tuple[int, ...]) -> None:
        raise TileMemoryError(f"no memory for {tile}")

    with pytest.raises(TileMemoryError, match=r"no memory for \(1, 16, 16\)"):
        TileMemory((4, 100, 40), (1, 16, 16)).fit(run)


def test_halves_are_whole_periods_and_never_less_than_one() -> None:
    for times in range(12):
        tile = halved((3, 200, 96), (1, 16, 16), times)
        assert times == 0 or ((tile[1] % 16 == 0 or tile[1] == 200) and tile[2] % 16 == 0)
        assert min(tile) >= 1 and min(tile[1:]) >= 16
    assert tile == (1, 16, 16)
