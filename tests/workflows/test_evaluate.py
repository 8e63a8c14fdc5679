"""An evaluation shows what it scored: each section of the run's pictures is that of the volumes, in its place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from tessera.images.colours import label_colours, target_colours
from tessera.images.quantise import dequantise
from tessera.images.targets import LabelRule
from tessera.metrics.isbi import finish, score_section
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
    np.testing.assert_array_equal(panels["truth"], target_colours((opened["truth"].array[2] == 0).astype(np.uint8)))
    np.testing.assert_array_equal(panels["cells"], label_colours(opened["cells"].array[2]))


def test_a_run_holds_a_picture_of_each_scored_section(volumes: Path, home: Path) -> None:
    evaluate(EvaluateSettings("p", "truth", "1-2", cells="cells"))
    client = MlflowClient(tracking_uri(None, home))
    run = client.search_runs([client.get_experiment_by_name("tessera").experiment_id], max_results=1)[0]
    names = [Path(file.path).name for file in client.list_artifacts(run.info.run_id, "images")]
    full = [name for name in names if name.startswith("section") and "compressed" not in name and name.endswith(".png")]
    assert len(full) == 2, names
    assert {"by_threshold/v_rand", "by_threshold/pixel_error", "v_rand_frozen"} <= set(run.data.metrics)
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


# Truth of which a part is unknown


@pytest.fixture
def sparse(volumes: Path) -> Path:
    """The truth, known in a rectangle of section 0, at a membrane of section 1, and nowhere in section 2."""
    truth = open_volume(volumes / "truth.zarr").array[:]
    known = np.zeros(truth.shape, bool)
    known[0, 4:30, 6:40] = known[1, 8:9, :20] = True
    return put_volume(volumes / "sparse.zarr", np.where(known, truth, 99).astype(np.uint8), kind="labels")


def test_known_pixels_alone_are_scored(volumes: Path, sparse: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "tessera"):
        found = evaluate(EvaluateSettings("p", "sparse", unknown_label=99))
    assert found["sections"] == [0]
    assert "sections [1, 2] of " in caplog.text and "no pixel of them is known to be cell" in caplog.text
    probability, truth = (open_volume(volumes / f"{name}.zarr").array[0, 4:30, 6:40] for name in ("p", "truth"))
    rectangle = finish([score_section(1.0 - dequantise(probability), truth)])
    assert found["by_threshold"] == rectangle.to_dict()["rows"]


def test_sections_chosen_by_number_must_have_a_known_cell(sparse: Path) -> None:
    with pytest.raises(ValueError, match=r"sections \[1, 2\] of .* have no pixel that is known to be cell.*Leave them"):
        evaluate(EvaluateSettings("p", "sparse", "0-2", unknown_label=99))


def test_pictures_show_what_nobody_annotated_in_a_colour_of_its_own(volumes: Path, sparse: Path) -> None:
    opened = open_volume(volumes / "p.zarr"), open_volume(sparse)
    truth = SectionPanels(*opened, rule=LabelRule(unknown=99)).of(0)["truth"]
    coloured = np.ptp(truth.astype(int), axis=2) > 0
    assert not coloured[4:30, 6:40].any() and coloured.sum() == coloured.size - 26 * 34


# Truth of a part


def test_truth_of_a_part_is_compared_with_what_was_predicted_there(volumes: Path) -> None:
    whole = evaluate(EvaluateSettings("p", "truth", "1"))
    truth, rows, columns = open_volume(volumes / "truth.zarr").array[:], slice(5, 40), slice(3, 50)
    put_volume(volumes / "part.zarr", truth[1:, rows, columns], translation_nm=(50, 5 * 4, 3 * 4), kind="labels")
    found = evaluate(EvaluateSettings("p", "part", "0"))
    probability = open_volume(volumes / "p.zarr").array[1, rows, columns]
    cut = finish([score_section(1.0 - dequantise(probability), truth[1, rows, columns])])
    assert found["by_threshold"] == cut.to_dict()["rows"] != whole["by_threshold"]
    opened = open_volume(volumes / "p.zarr"), open_volume(volumes / "part.zarr")
    panels = SectionPanels(*opened, origin=(1, 5, 3)).of(0)
    np.testing.assert_array_equal(panels["raw"], open_volume(volumes / "raw.zarr").array[PART][1, rows, columns])


def test_instances_are_truth_of_a_probability_too(volumes: Path) -> None:
    truth = open_volume(volumes / "truth.zarr").array[:]
    _, _, x = np.indices(truth.shape)
    put_volume(volumes / "ids.zarr", np.where(truth > 0, 1 + x // 8, 0).astype(np.uint64), kind="labels")
    found = evaluate(EvaluateSettings("p", "ids", labels_are="instances"))
    assert found["by_threshold"] == evaluate(EvaluateSettings("p", "truth"))["by_threshold"]
