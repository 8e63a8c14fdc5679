"""An evaluation shows what it scored: each section of the run's pictures is that of the volumes, in its place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from tessera.images.colours import label_colours
from tessera.settings.evaluate import EvaluateSettings
from tessera.settings.segment import SegmentSettings
from tessera.storage.volumes import open_volume
from tessera.tracking.runs import tracking_uri
from tessera.workflows.evaluate import evaluate
from tessera.workflows.panels import LARGEST_PX, SectionPanels
from tessera.workflows.segment import segment
from volumes import grey, mask, put_volume

SHAPE, ROI = (4, 64, 72), [[1, 8, 16], [4, 56, 72]]
PART = (slice(1, 4), slice(8, 56), slice(16, 72))


@pytest.fixture
def volumes(home: Path) -> Path:
    """A raw volume, the probability of a region of it, its truth and its cells."""
    folder = home / "volumes"
    truth = mask(SHAPE)[PART]
    probability = np.where(truth == 0, 230, 20).astype(np.uint8) + grey(truth.shape, 5) % 20
    put_volume(folder / "raw.zarr", grey(SHAPE))
    put_volume(
        folder / "p.zarr",
        probability,
        kind="membrane probability",
        threshold=0.5,
        input=str(folder / "raw.zarr"),
        roi=ROI,
    )
    put_volume(folder / "truth.zarr", truth, kind="labels")
    segment(SegmentSettings("p", "cells", engine="serial"))
    return folder


def test_panels_show_the_same_voxels_of_every_volume(volumes: Path) -> None:
    opened = {name: open_volume(volumes / f"{name}.zarr") for name in ("raw", "p", "truth", "cells")}
    panels = SectionPanels(opened["p"], opened["truth"], opened["cells"]).of(2)
    assert list(panels) == ["raw", "membrane probability", "truth", "cells"]
    np.testing.assert_array_equal(panels["raw"], opened["raw"].array[PART][2])
    np.testing.assert_allclose(panels["membrane probability"] * 255, opened["p"].array[2], atol=1e-4)
    np.testing.assert_array_equal(panels["truth"] == 1, opened["truth"].array[2] == 0)
    np.testing.assert_array_equal(panels["cells"], label_colours(opened["cells"].array[2]))


def test_a_run_holds_a_picture_of_each_scored_section(volumes: Path, home: Path) -> None:
    evaluate(EvaluateSettings("p", "truth", "1-2", cells="cells"))
    client = MlflowClient(tracking_uri(None, home))
    run = client.search_runs([client.get_experiment_by_name("tessera").experiment_id], max_results=1)[0]
    names = [Path(file.path).name for file in client.list_artifacts(run.info.run_id, "images")]
    full = [name for name in names if "compressed" not in name and name.endswith(".png")]
    assert len(full) == 2, names
    path = client.download_artifacts(run.info.run_id, f"images/{full[0]}", str(home))
    picture = np.asarray(Image.open(path).convert("RGB"))
    shown = SectionPanels(open_volume(volumes / "p.zarr"), open_volume(volumes / "truth.zarr")).of(1)["raw"]
    enlarged = shown.repeat(5, axis=0).repeat(5, axis=1)
    assert (picture[28 : 28 + enlarged.shape[0], 28 : 28 + enlarged.shape[1], 0] == enlarged).all()


def test_a_section_too_large_for_a_browser_is_shown_by_its_middle(home: Path) -> None:
    shape = (1, LARGEST_PX + 100, 80)
    voxels = grey(shape)
    p = put_volume(home / "volumes" / "p.zarr", voxels, kind="membrane probability")
    truth = put_volume(home / "volumes" / "t.zarr", mask(shape), kind="labels")
    panels = SectionPanels(open_volume(p), open_volume(truth)).of(0)
    assert "raw" not in panels, "no raw volume is known: the picture goes without it"
    np.testing.assert_allclose(panels["membrane probability"] * 255, voxels[0, 50:-50], atol=1e-4)


def test_cells_of_another_volume_are_refused(volumes: Path, home: Path) -> None:
    put_volume(volumes / "other.zarr", np.ones(SHAPE, np.uint64))
    settings = EvaluateSettings("p", "truth", cells="other")
    with pytest.raises(ValueError, match=r"they were not cut from it\. Give the output of tessera segment"):
        evaluate(settings)
    with pytest.raises(ValueError, match="they were not cut from it"):
        evaluate(replace(settings, cells="p"))
