"""The per_section rule end to end: measured before, kept with the output, and never a tile's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundles import make_bundle
from tessera.geometry.blocks import BlockGrid
from tessera.geometry.boxes import Box
from tessera.images.levels import LevelTable, levels_of_sections
from tessera.images.normalise import Normalisation
from tessera.images.quantise import quantise
from tessera.model.bundle import load_contract, save_contract
from tessera.model.predictor import load_predictor, predict_box, predict_volume
from tessera.settings.predict import PredictSettings, parse_roi
from tessera.settings.train import AnnotatedSections, DataSettings, ScheduleSettings, TrainSettings
from tessera.storage.ledger import ledger_path
from tessera.storage.volumes import create_volume, open_volume
from tessera.workflows.annotated import load_annotated
from tessera.workflows.levels import attribute_of, volume_levels
from tessera.workflows.outputs import digest_of
from tessera.workflows.predict import predict
from tessera.workflows.training_loop import sampling_source
from tessera.workflows.training_plan import first_contract
from volumes import mask, put_volume

SHAPE, INVALID = (5, 83, 121), 3
LAYOUT = {"chunk": (2, 16, 16), "shard": (2, 32, 32)}
WHOLE = {"chunk": SHAPE, "shard": SHAPE}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose contract normalises section by section."""
    folder = make_bundle(tmp_path_factory.mktemp("bundle") / "b")
    rule = Normalisation("per_section", 0.5, 0.6)
    save_contract(folder, replace(load_contract(folder), normalisation=rule))
    return folder


@pytest.fixture(scope="module")
def raw() -> np.ndarray:
    """Sections of very different brightness and contrast; one is blank."""
    rng = np.random.default_rng(11)
    drift = np.array([(30, 60), (80, 140), (20, 230), (0, 0), (150, 220)])
    low, high = drift.T[:, :, None, None]
    return (low + (high - low) * rng.random(SHAPE)).astype(np.uint8)


def _put(path: Path, raw: np.ndarray, layout: dict[str, Any] = LAYOUT) -> Path:
    made = create_volume(
        path, raw.shape, np.uint8, voxel_size_nm=(50, 4, 4), attributes={"invalid_sections": [INVALID]}, **layout
    )
    for _, box in BlockGrid(raw.shape, made.shard).boxes():
        made.write(box, raw[box.slices])
    return path


@pytest.fixture
def volume(raw: np.ndarray, tmp_path: Path) -> Path:
    return _put(tmp_path / "raw.zarr", raw)


def _predict(volume: Path, bundle: Path, output: Path, **chosen: Any) -> np.ndarray:
    settings = PredictSettings(str(volume), str(bundle), str(output), **{**LAYOUT, "engine": "serial", **chosen})
    return open_volume(predict(settings)).array[:]


def _oracle(bundle: Path, raw: np.ndarray) -> np.ndarray:
    """Each valid section alone, whole, in one pass."""
    network, contract = load_predictor(bundle)
    sections = [z for z in range(len(raw)) if z != INVALID]
    probability = np.zeros(raw.shape, np.float32)
    for z in sections:
        probability[z] = predict_volume(network, raw[z : z + 1], contract)[0]
    return probability


def _assert_same(stored: np.ndarray, probability: np.ndarray) -> None:
    difference = np.abs(stored.astype(int) - quantise(probability).astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-4
    assert len(np.unique(stored)) > 50, "a flat prediction would agree with anything"


@pytest.mark.parametrize(
    "chosen",
    [{"tile": (1, 16, 32)}, {"tile": (3, 64, 64), "block": (4, 64, 96)}, {"tile": (5, 128, 128), **WHOLE}],
    ids=["small", "middling", "whole"],
)
def test_any_tiling_gives_whole_section_voxels(
    volume: Path, bundle: Path, raw: np.ndarray, tmp_path: Path, chosen: dict[str, Any]
) -> None:
    _assert_same(_predict(volume, bundle, tmp_path / "out.zarr", **chosen), _oracle(bundle, raw))


def test_a_region_is_normalised_by_levels_of_whole_sections(
    volume: Path, bundle: Path, raw: np.ndarray, tmp_path: Path
) -> None:
    text = "1:5,7:72,13:118"
    stored = _predict(volume, bundle, tmp_path / "roi.zarr", roi=text, tile=(2, 24, 40))
    _assert_same(stored, _oracle(bundle, raw)[parse_roi(text, SHAPE).slices])


def test_a_section_predicts_alike_however_bright_it_is(bundle: Path) -> None:
    network, contract = load_predictor(bundle)
    dark = np.random.default_rng(4).integers(10, 60, (1, 64, 64), dtype=np.uint8)
    np.testing.assert_allclose(
        predict_volume(network, 2 * dark + 40, contract), predict_volume(network, dark, contract), atol=1e-5
    )


def test_levels_do_not_depend_on_how_the_volume_is_stored(raw: np.ndarray, tmp_path: Path) -> None:
    tables = [
        volume_levels(open_volume(_put(tmp_path / f"{k}.zarr", raw, layout)), range(5))
        for k, layout in enumerate((LAYOUT, WHOLE))
    ]
    assert tables[0] == tables[1]
    assert tables[0][INVALID] is None
    valid = [z for z in range(5) if z != INVALID]
    assert [tables[0][z] for z in valid] == levels_of_sections(raw[valid])


def test_a_large_section_is_measured_as_in_training(tmp_path: Path) -> None:
    """Patches read from storage are those that training takes from a section in memory."""
    sections = np.random.default_rng(5).integers(1, 255, (2, 1100, 1000), dtype=np.uint8)
    sections[:, 300:] //= 2
    volume = open_volume(put_volume(tmp_path / "large.zarr", sections))
    assert list(volume_levels(volume, range(2)).values()) == levels_of_sections(sections)


def test_the_table_stays_with_the_output_and_in_its_key(
    volume: Path, bundle: Path, raw: np.ndarray, tmp_path: Path
) -> None:
    _predict(volume, bundle, tmp_path / "out.zarr", roi="2:5,0:40,0:40")
    kept = open_volume(tmp_path / "out.zarr").attributes["section_levels"]
    assert list(kept) == ["2", "3", "4"]
    assert kept["3"] is None
    assert [tuple(kept[z]) for z in ("2", "4")] == levels_of_sections(raw[[2, 4]])
    assert "section_levels" in (ledger_path(tmp_path / "out.zarr") / "job.json").read_text()


def test_a_blank_section_that_nobody_marked_is_refused_before_anything_is_made(
    bundle: Path, raw: np.ndarray, tmp_path: Path
) -> None:
    unmarked = put_volume(tmp_path / "raw.zarr", raw)
    with pytest.raises(ValueError, match=r"sections 3 of .*raw\.zarr hold next to nothing.*marks blank sections"):
        _predict(unmarked, bundle, tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()


def test_a_table_that_misses_a_section_is_refused(bundle: Path, raw: np.ndarray) -> None:
    network, contract = load_predictor(bundle)
    core = Box((1, 0, 0), (3, 32, 32))
    with pytest.raises(ValueError, match=r"sections \[2\] of .* have no entry in the table of grey levels"):
        predict_box(network, lambda b: raw[b.slices], SHAPE, core, (1, 32, 32), contract, {1: (30.0, 60.0)})


def test_training_freezes_the_rule_and_learns_from_sections_on_one_scale(raw: np.ndarray, tmp_path: Path) -> None:
    volume, labels = _put(tmp_path / "raw.zarr", raw), put_volume(tmp_path / "labels.zarr", mask(SHAPE))
    part = [AnnotatedSections(str(volume), str(labels), "0-2")]
    settings = TrainSettings(
        data=DataSettings(part, part), normalisation="per_section", schedule=ScheduleSettings(crop_px=64)
    )
    learned = load_annotated(part, settings.data)
    contract = first_contract(settings, learned)
    assert contract.normalisation.rule == "per_section"
    images = sampling_source(settings, contract, learned).images
    # Uniform noise on one scale each, whatever its range was.
    np.testing.assert_allclose([image.mean() for image in images], 0, atol=0.05)
    np.testing.assert_allclose([image.std() for image in images], 1, atol=0.05)


def _digest(table: LevelTable) -> str:
    return digest_of(attribute_of(table))


def test_the_digest_tells_tables_apart_whatever_their_order() -> None:
    table = {0: (1.0, 2.0), 1: None}
    assert _digest(table) == _digest({1: None, 0: (1.0, 2.0)})
    assert len({_digest(t) for t in (table, {0: (1.0, 2.0)}, {0: (1.0, 3.0), 1: None})}) == 3
