"""The graph does what the arithmetic says: sizes, parameters, and tiles that equal the whole."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.geometry.arithmetic import fold, unet_records
from tessera.geometry.boxes import Box
from tessera.images.normalise import Normalisation
from tessera.model.bundle import Contract
from tessera.model.predictor import predict_box, predict_volume, valid_predict
from tessera.model.spec import UnetSpec


@pytest.mark.parametrize(("filters", "parameters"), [(64, 31_030_593), (32, 7_759_521)])
def test_the_paper_s_network_has_the_paper_s_parameters(filters: int, parameters: int) -> None:
    from tessera.model.unet import build_unet

    assert build_unet(UnetSpec(filters=filters, depth=4)).count_params() == parameters


def test_the_paper_s_figure_1_sizes_follow_from_the_records() -> None:
    arithmetic = fold(unet_records(depth=4))
    assert arithmetic.output_shape((1, 572, 572)) == (1, 388, 388)
    assert arithmetic.halo == (0, 94, 94)
    assert arithmetic.period == (1, 16, 16)
    assert arithmetic.axes[1].phase == 2


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_graph_s_output_has_the_derived_extent(depth: int) -> None:
    from tessera.model.unet import build_unet

    spec = UnetSpec(filters=2, depth=depth)
    model = build_unet(spec)
    axis = spec.arithmetic.axes[1]
    for size in (axis.min_input, axis.min_input + 3 * axis.period):
        expected = spec.arithmetic.output_shape((1, size, size))[1]
        assert model(np.zeros((1, size, size, 1), np.float32)).shape[1:3] == (expected, expected)


def test_an_illegal_input_names_the_nearest_legal_one() -> None:
    with pytest.raises(ValueError, match=r"input extent 570 on axis y is illegal.*Try 572"):
        fold(unet_records(depth=4)).output_shape((1, 570, 572))


def _moved_network(padding: Literal["valid", "same"]) -> tuple[Any, UnetSpec]:
    """A small network with all of its parts, its normalisation statistics moved off their initial values."""
    from tessera.model.unet import build_unet

    spec = UnetSpec(filters=3, depth=2, padding=padding, batch_norm=True, dropout=0.3)
    model = build_unet(spec, seed=7)
    rng = np.random.default_rng(7)
    model.set_weights([w + 0.2 * np.abs(rng.standard_normal(w.shape)).astype(np.float32) for w in model.get_weights()])
    return model, spec


@pytest.fixture(scope="module", params=["valid", "same"])
def trained(request: pytest.FixtureRequest) -> tuple[Any, UnetSpec]:
    return _moved_network(request.param)


def _contract(spec: UnetSpec) -> Contract:
    return Contract(spec, Normalisation("global", 120.0, 40.0), "uint8", (50.0, 4.0, 4.0))


def test_the_valid_graph_equals_the_same_padded_graph_s_interior() -> None:
    model, spec = _moved_network("same")
    image = np.random.default_rng(1).standard_normal((1, 128, 128, 1), dtype=np.float32)
    whole = 1.0 / (1.0 + np.exp(-np.asarray(model(image, training=False))))
    axis = spec.arithmetic.axes[1]
    # Useful voxels start on the grid anchored at voxel 0, as far from the zero padding as the network sees.
    start = -(-axis.halo // axis.period) * axis.period
    stop = start + 4 * axis.period
    reach = slice(start - axis.halo, stop + axis.halo)
    tiled = valid_predict(model, spec)(image[:, reach, reach])[0, axis.crop : -axis.crop, axis.crop : -axis.crop, 0]
    np.testing.assert_allclose(tiled, whole[0, start:stop, start:stop, 0], atol=1e-5)


def test_batch_normalisation_is_frozen_at_inference(trained: tuple[Any, UnetSpec]) -> None:
    predict = valid_predict(*trained)
    rng = np.random.default_rng(2)
    size = trained[1].arithmetic.axes[1].min_input
    tiles = rng.standard_normal((3, size, size, 1), dtype=np.float32)
    alone = np.concatenate([predict(tile[np.newaxis]) for tile in tiles])
    np.testing.assert_allclose(predict(tiles), alone, atol=1e-6)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 90), st.integers(1, 90)),
    tile=st.tuples(st.integers(1, 3), st.sampled_from([4, 16, 24, 60]), st.sampled_from([4, 20, 64])),
    corner=st.tuples(st.floats(0, 0.9), st.floats(0, 0.9), st.floats(0, 0.9)),
)
def test_any_tiling_of_any_box_equals_the_whole_section(
    trained: tuple[Any, UnetSpec],
    shape: tuple[int, int, int],
    tile: tuple[int, int, int],
    corner: tuple[float, float, float],
) -> None:
    model, spec = trained
    volume = np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)
    predict, contract = _cached_predict(model, spec), _contract(spec)
    whole = predict_volume(predict, volume, contract)
    core = Box(tuple(int(c * n) for c, n in zip(corner, shape, strict=True)), shape)
    part = predict_box(predict, lambda box: volume[box.slices], shape, core, tile, contract)
    np.testing.assert_allclose(part, whole[core.slices], atol=1e-5)


_PREDICTORS: dict[int, object] = {}


def _cached_predict(model: object, spec: UnetSpec):  # type: ignore[no-untyped-def]
    if id(model) not in _PREDICTORS:
        _PREDICTORS[id(model)] = valid_predict(model, spec)
    return _PREDICTORS[id(model)]


def test_the_paper_s_weights_are_those_of_he_s_initialisation() -> None:
    from tessera.model.unet import build_unet

    kernel = build_unet(UnetSpec(filters=32, depth=2)).get_layer("bottomb").get_weights()[0]
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 128)), rel=0.02)
