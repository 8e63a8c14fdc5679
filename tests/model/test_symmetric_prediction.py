"""Averaging over symmetries is as exact as one pass: for any tiling, and in any orientation of the volume."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bundles import make_bundle
from tessera.geometry.boxes import Box
from tessera.images.symmetries import SymmetryCount, symmetries_of
from tessera.model.bundle import Contract, load_contract, load_model
from tessera.model.predictor import Predict, averaged, load_predictor, predict_box, predict_volume, valid_predict


class Network:
    """A bundle's network, alone and averaged; made once, as each tile shape costs a trace of the graph."""

    def __init__(self, folder: Path) -> None:
        self.contract: Contract = load_contract(folder)
        self.alone: Predict = valid_predict(load_model(folder), self.contract.network)

    def averaged(self, count: SymmetryCount) -> Predict:
        return averaged(self.alone, symmetries_of(count))


@pytest.fixture(scope="module", params=["valid", "same"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Network:
    return Network(make_bundle(tmp_path_factory.mktemp("bundle") / "b", request.param))


def _noise(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def _in_the_open(network: Network, volume: NDArray[Any], count: SymmetryCount) -> NDArray[np.float32]:
    """The oracle: lay the whole mirrored volume down each way, predict it, lay the results back, take their mean.

    The volume is grown by its mirror to whole periods from voxel 0 on, so that all orientations pool on one grid.
    """
    arithmetic = network.contract.network.arithmetic
    pads = [(0, 0)]
    for axis, extent in zip(arithmetic.axes[1:], volume.shape[1:], strict=True):
        around = -(-axis.halo // axis.period) * axis.period
        pads.append((around, around + -extent % axis.period))
    grown = np.pad(volume, pads, mode="reflect")[..., np.newaxis]
    upright = [
        symmetry.invert(predict_volume(network.alone, symmetry.apply(grown)[..., 0], network.contract)[..., np.newaxis])
        for symmetry in symmetries_of(count)
    ]
    inside = Box(
        tuple(before for before, _ in pads), tuple(b + n for (b, _), n in zip(pads, volume.shape, strict=True))
    )
    return np.mean(upright, axis=0, dtype=np.float64).astype(np.float32)[..., 0][inside.slices]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 70), st.integers(1, 70)),
    tile=st.tuples(st.integers(1, 2), st.sampled_from([4, 16, 24, 60]), st.sampled_from([4, 20, 64])),
    corners=st.tuples(*[st.tuples(st.floats(0, 0.99), st.floats(0, 0.99))] * 3),
    count=st.sampled_from([4, 8]),
)
def test_any_tiling_of_any_box_equals_the_whole_section_averaged(
    network: Network,
    shape: tuple[int, int, int],
    tile: tuple[int, int, int],
    corners: tuple[tuple[float, float], ...],
    count: SymmetryCount,
) -> None:
    volume, predict = _noise(shape), network.averaged(count)
    ends = [sorted(int(c * n) for c in pair) for pair, n in zip(corners, shape, strict=True)]
    core = Box(tuple(a for a, _ in ends), tuple(b + 1 for _, b in ends))
    whole = predict_volume(predict, volume, network.contract)
    part = predict_box(predict, lambda box: volume[box.slices], shape, core, tile, network.contract)
    np.testing.assert_allclose(part, whole[core.slices], atol=1e-5)
    np.testing.assert_allclose(whole, _in_the_open(network, volume, count), atol=1e-5)


@pytest.mark.parametrize("count", [4, 8])
@pytest.mark.parametrize("shape", [(1, 40, 40), (2, 24, 52)])
def test_a_volume_laid_down_another_way_gives_the_same_laid_down_that_way(
    network: Network, count: SymmetryCount, shape: tuple[int, int, int]
) -> None:
    """Where extents are whole periods: elsewhere the grid, anchored at voxel 0, lies otherwise on a flipped volume."""
    volume, predict = _noise(shape), network.averaged(count)
    upright = predict_volume(predict, volume, network.contract)[..., np.newaxis]
    for symmetry in symmetries_of(count):
        laid = np.ascontiguousarray(symmetry.apply(volume[..., np.newaxis])[..., 0])
        predicted = predict_volume(predict, laid, network.contract)
        np.testing.assert_allclose(predicted, symmetry.apply(upright)[..., 0], atol=1e-5)


def test_one_pass_tells_orientations_apart_and_flips_alone_tell_turns_apart(network: Network) -> None:
    """What makes the tests above able to fail: this network treats orientations differently."""
    volume = _noise((1, 32, 32))
    for count, others in ((1, symmetries_of(4)[1:]), (4, symmetries_of(8)[1:2])):
        predict = network.averaged(count)  # type: ignore[arg-type]
        upright = predict_volume(predict, volume, network.contract)[..., np.newaxis]
        for symmetry in others:
            laid = symmetry.apply(volume[..., np.newaxis])[..., 0]
            predicted = predict_volume(predict, laid, network.contract)
            assert np.abs(predicted - symmetry.apply(upright)[..., 0]).max() > 1e-2


def test_the_mean_is_float32_and_never_holds_an_earlier_orientation_s_result() -> None:
    results: list[weakref.ref[NDArray[np.float32]]] = []
    alive: list[int] = []

    def brightness(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        alive.append(sum(result() is not None for result in results))
        fresh = tiles * np.float32(len(results))
        results.append(weakref.ref(fresh))
        return fresh

    mean = averaged(brightness, symmetries_of(8))(np.ones((1, 3, 5, 1), np.float32))
    assert mean.dtype == np.float32 and mean.shape == (1, 3, 5, 1)
    np.testing.assert_array_equal(mean, np.float32(3.5))
    assert alive == [0] * 8


def test_the_average_leaves_what_the_network_gave_alone() -> None:
    kept = np.ones((1, 4, 4, 1), np.float32)
    averaged(lambda tiles: kept, symmetries_of(4))(np.zeros((1, 4, 4, 1), np.float32))
    np.testing.assert_array_equal(kept, 1)


def test_an_average_over_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"symmetries is empty.*Give at least the identity"):
        averaged(lambda tiles: tiles, ())


def test_a_bundle_s_predictor_averages_as_its_contract_says_unless_told_otherwise(tmp_path: Path) -> None:
    folder, volume = make_bundle(tmp_path / "b", symmetries=8), _noise((1, 20, 28))
    alone = valid_predict(load_model(folder), load_contract(folder).network)
    for count in (None, 1, 4):
        predict, contract = load_predictor(folder, count)  # type: ignore[arg-type]
        expected = predict_volume(averaged(alone, symmetries_of(count or 8)), volume, contract)  # type: ignore[arg-type]
        np.testing.assert_allclose(predict_volume(predict, volume, contract), expected, atol=1e-6)
        assert contract.symmetries == 8, "the contract says with what the threshold was chosen"


def test_a_bundle_of_oblong_voxels_is_not_turned(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b", voxel_size_nm=(50.0, 4.0, 8.0))
    with pytest.raises(ValueError, match=r"symmetries=8 turns sections by 90 degrees.*Try symmetries=4"):
        load_predictor(folder, 8)
    load_predictor(folder, 4)
