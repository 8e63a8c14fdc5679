"""The test of tests: however a volume is cut, every voxel comes out as if its whole section had been predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cc3d
import numpy as np
import pytest

from bundles import make_bundle
from oracles import same_up_to_renaming
from tessera.geometry.blocks import BlockGrid
from tessera.images.quantise import quantise
from tessera.model.predictor import load_predictor, predict_box, predict_volume
from tessera.settings.predict import PredictSettings, parse_roi
from tessera.settings.segment import SegmentSettings
from tessera.storage.volumes import create_volume, open_volume, update_attributes
from tessera.workflows import stitching
from tessera.workflows.predict import predict
from tessera.workflows.segment import segment

SHAPE = (5, 83, 121)
LAYOUT = {"chunk": (2, 16, 16), "shard": (2, 32, 32)}
SERIAL = {"engine": "serial"}


@pytest.fixture(scope="module", params=["valid", "same"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / request.param, request.param)


@pytest.fixture(scope="module")
def raw() -> np.ndarray:
    rng = np.random.default_rng(11)
    return rng.integers(0, 256, SHAPE, dtype=np.uint8)


@pytest.fixture
def volume(raw: np.ndarray, tmp_path: Path) -> Path:
    """The raw voxels as a volume, one section of it marked invalid."""
    path = tmp_path / "raw.zarr"
    made = create_volume(
        path, SHAPE, np.uint8, voxel_size_nm=(50, 4, 4), attributes={"invalid_sections": [3]}, **LAYOUT
    )
    for _, box in BlockGrid(SHAPE, made.shard).boxes():
        made.write(box, raw[box.slices])
    return path


def _whole(bundle: Path, raw: np.ndarray) -> np.ndarray:
    """Whole-section prediction, unquantised: the oracle."""
    probability = predict_volume(*_order(load_predictor(bundle), raw))
    probability[3] = 0  # the invalid section
    return probability


def _order(loaded: tuple[Any, Any], raw: np.ndarray) -> tuple[Any, np.ndarray, Any]:
    return loaded[0], raw, loaded[1]


def _assert_same_voxels(stored: np.ndarray, probability: np.ndarray, *, levels: int = 50) -> None:
    """Quantised prediction within the promise: at most 1 apart, in at most 0.01% of voxels."""
    difference = np.abs(stored.astype(int) - quantise(probability).astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-4
    assert len(np.unique(stored)) > levels, "a flat prediction would agree with anything"


def _predict(volume: Path, bundle: Path, output: Path, **chosen: Any) -> np.ndarray:
    layout = {**LAYOUT, **{k: chosen.pop(k) for k in ("chunk", "shard") if k in chosen}}
    path = predict(PredictSettings(str(volume), str(bundle), str(output), **layout, **chosen))
    made = open_volume(path)
    return made.array[:]


@pytest.mark.parametrize("block", [(2, 32, 32), (4, 64, 32), (5, 83, 121)])
@pytest.mark.parametrize("tile", [(1, 16, 16), (2, 40, 24), (1, 512, 512)])
def test_blocks_equal_whole_sections_before_quantisation(
    bundle: Path, raw: np.ndarray, block: tuple[int, int, int], tile: tuple[int, int, int]
) -> None:
    network, contract = load_predictor(bundle)
    whole = predict_volume(network, raw, contract)
    for _, box in BlockGrid(SHAPE, block).boxes():
        part = predict_box(network, lambda b: raw[b.slices], SHAPE, box, tile, contract)
        np.testing.assert_allclose(part, whole[box.slices], atol=1e-5)


@pytest.mark.parametrize(
    "chosen",
    [
        {"tile": (1, 16, 32), "block": (2, 32, 32)},
        {"tile": (3, 64, 64), "block": (4, 64, 96)},
        {"tile": (1, 128, 128), "block": (6, 96, 128), "shard": (2, 96, 128), "chunk": (1, 8, 16)},
    ],
    ids=["small", "middling", "one-block-per-two-sections"],
)
def test_serial_jobs_give_whole_section_voxels(
    volume: Path, bundle: Path, raw: np.ndarray, tmp_path: Path, chosen: dict[str, Any]
) -> None:
    stored = _predict(volume, bundle, tmp_path / "out.zarr", **SERIAL, **chosen)
    _assert_same_voxels(stored, _whole(bundle, raw))


def test_a_region_at_an_odd_offset_equals_the_whole_run_s_crop(
    volume: Path, bundle: Path, raw: np.ndarray, tmp_path: Path
) -> None:
    text = "1:5,7:72,13:118"
    stored = _predict(volume, bundle, tmp_path / "roi.zarr", roi=text, tile=(1, 24, 40), **SERIAL)
    _assert_same_voxels(stored, _whole(bundle, raw)[parse_roi(text, SHAPE).slices])
    assert open_volume(tmp_path / "roi.zarr").invalid_sections == {2}


@pytest.mark.parametrize("symmetries", [4, 8])
def test_a_region_averaged_over_symmetries_equals_the_whole_run_s_crop(
    volume: Path, raw: np.ndarray, tmp_path: Path, symmetries: Any
) -> None:
    bundle, text = make_bundle(tmp_path / "bundle", symmetries=symmetries), "0:3,5:60,11:83"
    stored = _predict(volume, bundle, tmp_path / "roi.zarr", roi=text, tile=(2, 24, 40), **SERIAL)
    # What an untrained network makes of noise depends on the orientation above all: the mean has fewer grey levels.
    _assert_same_voxels(stored, _whole(bundle, raw)[parse_roi(text, SHAPE).slices], levels=10)


@pytest.mark.parametrize(("workers", "padding"), [(2, "same"), (3, "valid")])
def test_actors_give_whole_section_voxels(
    ray_session: None, volume: Path, raw: np.ndarray, tmp_path: Path, workers: int, padding: Any
) -> None:
    bundle = make_bundle(tmp_path / "bundle", padding)
    stored = _predict(volume, bundle, tmp_path / "out.zarr", tile=(1, 32, 48), workers=workers)
    _assert_same_voxels(stored, _whole(bundle, raw))


@pytest.fixture
def membranes(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Membrane probability with cells of all sizes, one section invalid, as predict would have written it."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(5).standard_normal(SHAPE), (0, 2.5, 2.5))
    stored = np.clip(128 + 400 * noise, 0, 255).astype(np.uint8)
    attributes = {"kind": "membrane probability", "threshold": 0.5, "invalid_sections": [2]}
    path = tmp_path / "membranes.zarr"
    made = create_volume(path, SHAPE, np.uint8, voxel_size_nm=(50, 4, 4), attributes=attributes, **LAYOUT)
    for _, box in BlockGrid(SHAPE, made.shard).boxes():
        made.write(box, stored[box.slices])
    return path, stored


def _cells(stored: np.ndarray, connectivity: int) -> np.ndarray:
    """cc3d on each whole section, ids distinct between sections: the oracle."""
    mask = 1.0 - stored / np.float32(255) > np.float32(0.5)
    mask[2] = False
    labels, total = np.zeros(stored.shape, np.uint64), 0
    for z, section in enumerate(mask):
        found, count = cc3d.connected_components(section, connectivity=connectivity, return_N=True)
        labels[z][section] = found[section].astype(np.uint64) + np.uint64(total)
        total += count
    return labels


def _assert_same_cells(path: Path, expected: np.ndarray) -> None:
    made = open_volume(path)
    labels = made.array[:]
    assert same_up_to_renaming(labels, expected)
    ids = np.unique(labels[labels > 0])
    assert labels.dtype == np.uint64
    assert ids.tolist() == list(range(1, len(ids) + 1)), "ids are consecutive"
    assert made.attributes["cells"] == len(ids) > 20


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("block", [(2, 32, 32), (2, 64, 128), (6, 32, 128)])
def test_stitched_cells_equal_whole_sections(
    membranes: tuple[Path, np.ndarray], tmp_path: Path, block: tuple[int, int, int], connectivity: Any
) -> None:
    path, stored = membranes
    out = segment(
        SegmentSettings(
            str(path), str(tmp_path / "cells.zarr"), connectivity=connectivity, block=block, **SERIAL, **LAYOUT
        )
    )
    _assert_same_cells(out, _cells(stored, connectivity))


def test_cells_on_ray_equal_the_serial_run_id_by_id(
    ray_session: None, membranes: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stitching, "FEW_BLOCKS", 0)  # seams are looked at by workers, too
    path, stored = membranes
    runs = {"serial": SERIAL, "ray": {"workers": 2}}
    outputs = {
        name: segment(SegmentSettings(str(path), str(tmp_path / f"{name}.zarr"), **runner, **LAYOUT))
        for name, runner in runs.items()
    }
    _assert_same_cells(outputs["ray"], _cells(stored, 4))
    serial, on_ray = (open_volume(outputs[name]).array[:] for name in runs)
    np.testing.assert_array_equal(serial, on_ray)


def test_half_written_probability_is_refused(membranes: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, _ = membranes
    update_attributes(path, complete=False)
    with pytest.raises(ValueError, match=r"only half-written.*Run the command that makes it again"):
        segment(SegmentSettings(str(path), str(tmp_path / "cells.zarr"), **SERIAL))
