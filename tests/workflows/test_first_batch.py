"""The picture of the first batch shows what was fed, from the fed arrays, whoever held them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from tessera.images.augment import Augmentation
from tessera.images.elastic import warp_together
from tessera.images.weights import border_weights
from tessera.model.spec import UnetSpec
from tessera.settings.train import ScheduleSettings, TrainSettings
from tessera.storage.arrays import load_arrays
from tessera.tracking.runs import Tracker, tracked_run, tracking_uri
from tessera.workflows.first_batch import KEPT, PICTURE, first_batch_sheet, show_first_batch
from tessera.workflows.training_loop import SamplingSource, epochs, fed_first, make_sample, sampling_map_of
from volumes import grey, mask

BATCH, CROP = 4, 32


@pytest.fixture(params=["same", "valid"])
def source(request: pytest.FixtureRequest) -> SamplingSource:
    spec = UnetSpec(2, 1, request.param, batch_norm=False, dropout=0.0)
    crop = CROP if request.param == "same" else 28
    settings = TrainSettings(
        network=spec,
        schedule=ScheduleSettings(steps=2, batch=BATCH, crop_px=crop),
        augmentation=Augmentation(elastic_sigma_px=3.0, rotation_degrees=180, flips=True, noise_sigma=0.1),
    )
    membrane = tuple((mask((3, 80, 96)) == 0).astype(np.uint8))
    images = tuple(grey((3, 80, 96)).astype(np.float32) / 50 - 2)
    weights = tuple(border_weights(1 - one, w0=10.0, sigma_px=5.0) for one in membrane)
    return SamplingSource(
        images, ("raw.zarr section 0", "b", "c"), membrane, weights, settings, spec.input_extent(crop)
    )


def _batches(source: SamplingSource, rank: int, world: int) -> list[dict[str, np.ndarray]]:
    samples = [make_sample(source, index) for index in range(rank, 2 * BATCH, world)]
    size = BATCH // world
    return [
        {name: np.stack([sample[name] for sample in samples[i : i + size]]) for name in samples[0]}
        for i in range(0, len(samples), size)
    ]


def _feed(source: SamplingSource, folder: Path, rank: int = 0, world: int = 1) -> list[Any]:
    return list(fed_first(_batches(source, rank, world), source, folder / KEPT, range(rank, BATCH, world), world))


@pytest.fixture
def run(home: Path) -> Tracker:
    with tracked_run(tracking_uri(None, home), "tests", "a run", {}, {}, home) as run:
        pass
    return run


def _logged(run: Tracker) -> list[str]:
    files = [file.path for file in MlflowClient(run.uri).list_artifacts(run.run_id, "images")]
    return [name for name in files if name.startswith("images/first_batch") and name.endswith(".png")]


def test_the_map_of_a_sample_is_the_one_that_it_was_cut_by(source: SamplingSource) -> None:
    """Else the grid in the picture would lie."""
    margin = (source.input_px - source.settings.schedule.crop_px) // 2
    inner = slice(margin, source.input_px - margin)
    for index in (0, 3, 10**6):
        drawn = sampling_map_of(source, index)
        cut = [
            warp_together(image, labels, weights, drawn)
            for image, labels, weights in zip(source.images, source.membrane, source.weights, strict=True)
        ]
        sample = make_sample(source, index)
        assert any(np.array_equal(weights[inner, inner], sample["weights"]) for _, _, weights in cut)


def test_batches_pass_unchanged_and_the_first_is_kept_as_it_was_fed(source: SamplingSource, tmp_path: Path) -> None:
    batches = _batches(source, 0, 1)
    batches[0]["target"] = 1 - batches[0]["target"]  # what is fed is not what would be made
    passed = list(fed_first(batches, source, tmp_path / KEPT, range(BATCH), 1))
    assert all(one is other for one, other in zip(passed, batches, strict=True))
    kept = load_arrays(tmp_path / KEPT / "0-of-1.npz")
    assert np.array_equal(kept["target"], batches[0]["target"])
    assert np.array_equal(kept["weights"], batches[0]["weights"])
    for shown, fed in zip(kept["grey"], batches[0]["image"], strict=True):
        assert np.corrcoef(shown.ravel(), fed.ravel())[0, 1] > 0.99
    assert str(kept["title"][2]).endswith(", sample 2")


def test_two_workers_give_the_sheet_of_one(source: SamplingSource, tmp_path: Path) -> None:
    for world in (1, 2):
        for rank in range(world):
            _feed(source, tmp_path / str(world), rank, world)
    alone = load_arrays(tmp_path / "1" / KEPT / "0-of-1.npz")
    shares = [load_arrays(tmp_path / "2" / KEPT / f"{rank}-of-2.npz") for rank in (0, 1)]
    assert np.array_equal(first_batch_sheet([alone]), first_batch_sheet(shares))


def test_targets_and_weights_of_the_sheet_are_those_fed(source: SamplingSource, tmp_path: Path) -> None:
    _feed(source, tmp_path)
    kept = load_arrays(tmp_path / KEPT / "0-of-1.npz")
    sheet, times = first_batch_sheet([kept]), -(-256 // source.input_px)
    panel, gap = source.input_px * times, 8
    margin = (source.input_px - source.settings.schedule.crop_px) // 2 * times
    extent = source.settings.schedule.crop_px * times
    top, left = 28 + 1 * (panel + gap) + margin, 28 + 2 * (panel + gap) + margin  # the second sample's target
    shown = sheet[top : top + extent : times, left : left + extent : times, 0]
    assert np.array_equal(shown, 255 * kept["target"][1])
    if margin:
        assert (sheet[top - 1, left : left + extent] == 128).all(), "context that carries no loss is grey"


def test_it_is_logged_once_all_workers_have_fed_and_only_once(
    source: SamplingSource, run: Tracker, tmp_path: Path
) -> None:
    show_first_batch(run, tmp_path)
    _feed(source, tmp_path, 0, 2)
    show_first_batch(run, tmp_path)
    assert _logged(run) == [], "half a batch is not shown"
    _feed(source, tmp_path, 1, 2)
    for _ in range(2):
        show_first_batch(run, tmp_path)
    assert len(_logged(run)) == 1
    assert "+step+0+" in _logged(run)[0]
    assert Image.open(tmp_path / PICTURE).size[1] > BATCH * 256
    _feed(source, tmp_path)  # a run that lost its workers before its first checkpoint begins again
    show_first_batch(run, tmp_path)
    assert len(_logged(run)) == 1
    assert not (tmp_path / KEPT).exists()


def test_an_epoch_is_as_many_scored_pixels_as_the_sections_hold(source: SamplingSource) -> None:
    crop = source.settings.schedule.crop_px
    samples = 100
    assert epochs(source, samples) == pytest.approx(samples * crop**2 / (3 * 80 * 96))
