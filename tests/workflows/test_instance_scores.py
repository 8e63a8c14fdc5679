"""Cells are scored block by block as whole volumes would be, where the labels lie, and without what is unknown."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from numpy.typing import NDArray
from skimage.metrics import adapted_rand_error, variation_of_information

from terminal import refusal, tessera
from tessera.geometry.boxes import Box
from tessera.settings.evaluate import EvaluateSettings
from tessera.storage.validity import add_validity, open_validity, validity_attribute
from tessera.storage.volumes import open_volume
from tessera.tracking.runs import tracking_uri
from tessera.workflows import array_stages, instance_scores
from tessera.workflows.evaluate import evaluate
from volumes import grey, put_volume

SHAPE = (20, 300, 280)
UNKNOWN = 2**64 - 1
Capsys = pytest.CaptureFixture[str]


def _ids(shape: tuple[int, ...], seed: int) -> NDArray[np.uint64]:
    """Ids above 2^40 of a random grid of bricks, a different one for each seed, and some 0."""
    rng = np.random.default_rng(seed)
    places = [np.searchsorted(np.sort(rng.choice(n, 3, replace=False)), np.arange(n)) for n in shape]
    brick = (places[0][:, None, None] * 4 + places[1][:, None]) * 4 + places[2]
    return np.where(rng.random(shape) < 0.1, 0, brick + 2**40 + 1).astype(np.uint64)


@pytest.fixture
def volumes(home: Path) -> Path:
    """Cells in eight blocks; labels of the same place, of which a corner is unknown."""
    folder = home / "volumes"
    put_volume(folder / "cells.zarr", _ids(SHAPE, 1), kind="cells")
    truth = _ids(SHAPE, 2)
    truth[:5, :60] = UNKNOWN
    put_volume(folder / "truth.zarr", truth, kind="labels")
    return folder


def _expected(truth: NDArray[Any], cells: NDArray[Any]) -> dict[str, float]:
    """By skimage; its tables are as large as the largest id, so ids are made small."""
    truth, cells = np.where(truth >= 2**63, 0, truth) & 0xFFFF, cells & 0xFFFF
    split, merge = variation_of_information(truth, cells, ignore_labels=[0])
    rand = adapted_rand_error(truth, cells, ignore_labels=(0,))[0]
    return {"voi_split": split, "voi_merge": merge, "adapted_rand_error_skimage": rand}


def _voxels(volumes: Path, *names: str) -> list[NDArray[Any]]:
    return [open_volume(volumes / f"{name}.zarr").array[:] for name in names]


def test_scores_of_blocks_are_those_of_the_whole_volume(volumes: Path, home: Path) -> None:
    found = evaluate(EvaluateSettings(cells="cells", labels="truth", engine="serial"))
    expected = _expected(*_voxels(volumes, "truth", "cells"))
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    tables = list((home / "scores").rglob("overlaps-*.npz"))
    assert len(tables) == 8, "each block has a table of its own"
    client = MlflowClient(tracking_uri(None, home))
    run = client.search_runs([client.get_experiment_by_name("tessera").experiment_id], max_results=1)[0]
    assert run.data.metrics["voi_split"] == pytest.approx(expected["voi_split"], abs=1e-9)
    pictures = {Path(file.path).name for file in client.list_artifacts(run.info.run_id, "images")}
    assert sum(name.startswith("section") and name.endswith(".png") for name in pictures) >= 6


def test_on_ray_the_scores_are_those_of_one_process(
    volumes: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch, home: Path, tmp_path: Path
) -> None:
    serial = evaluate(EvaluateSettings(cells="cells", labels="truth", engine="serial"))
    monkeypatch.setattr(array_stages, "_SMALL_VOXELS", 0)
    (home / "scores").rename(tmp_path / "scores")
    assert evaluate(EvaluateSettings(cells="cells", labels="truth", workers=2)) == serial


def test_what_was_counted_is_not_read_again(volumes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = EvaluateSettings(cells="cells", labels="truth", engine="serial", attempts=1)
    counted: list[Box] = []
    real = instance_scores.overlapping

    def dying(*arguments: Any) -> Any:
        if len(counted) == 5:
            raise KeyboardInterrupt
        counted.append(arguments[-1])
        return real(*arguments)

    monkeypatch.setattr(instance_scores, "overlapping", dying)
    with pytest.raises(KeyboardInterrupt):
        evaluate(settings)
    monkeypatch.setattr(instance_scores, "overlapping", lambda *a: counted.append(a[-1]) or real(*a))
    found = evaluate(settings)
    assert len(counted) == len(set(counted)) == 8
    assert found["voi_split"] == pytest.approx(_expected(*_voxels(volumes, "truth", "cells"))["voi_split"], abs=1e-9)
    assert evaluate(settings) == found and len(counted) == 8


def test_labels_that_are_a_part_lie_where_their_translation_says(volumes: Path) -> None:
    part = (slice(3, 15), slice(100, 290), slice(7, 280))
    truth, cells = (voxels[part] for voxels in _voxels(volumes, "truth", "cells"))
    put_volume(volumes / "part.zarr", truth, translation_nm=(3 * 50.0, 100 * 4.0, 7 * 4.0), kind="labels")
    found = evaluate(EvaluateSettings(cells="cells", labels="part", engine="serial"))
    expected = _expected(truth, cells)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_chosen_sections_alone_are_scored(volumes: Path) -> None:
    found = evaluate(EvaluateSettings(cells="cells", labels="truth", sections="2,17-18", engine="serial"))
    truth, cells = (voxels[[2, 17, 18]] for voxels in _voxels(volumes, "truth", "cells"))
    expected = _expected(truth, cells)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert found["sections"] == [2, 17, 18]


@pytest.mark.parametrize("named", [None, "largest"])
def test_the_largest_uint64_is_unknown_without_being_named(volumes: Path, named: Any) -> None:
    found = evaluate(EvaluateSettings(cells="cells", labels="truth", unknown_label=named, engine="serial"))
    truth = _voxels(volumes, "truth")[0]
    assert found["voxels"] == np.count_nonzero((truth > 0) & (truth < UNKNOWN))


def test_voxels_that_were_never_predicted_are_not_scored(volumes: Path, home: Path) -> None:
    p = volumes / "p.zarr"
    own = {"kind": "membrane probability", "validity": validity_attribute()}
    add_validity(open_volume(put_volume(p, grey(SHAPE), **own), writable=True))
    valid = np.ones(SHAPE, np.uint8)
    valid[:, :90] = 0
    mask = open_validity(open_volume(p), writable=True)
    assert mask is not None
    mask.write(Box.whole(SHAPE), valid)
    truth, cells = _voxels(volumes, "truth", "cells")
    put_volume(volumes / "masked.zarr", cells, kind="cells", input=str(p))
    found = evaluate(EvaluateSettings(cells="masked", labels="truth", engine="serial"))
    expected = _expected(truth[:, 90:], cells[:, 90:])
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_the_command_prints_the_scores_and_their_conventions(capsys: Capsys, volumes: Path) -> None:
    answer = tessera(capsys, "evaluate", "--cells", "truth", "--labels", "truth", "--engine", "serial")
    assert answer.code == 0, answer.err
    scores = json.loads(answer.out)
    assert scores["voi"] == scores["adapted_rand_error_cremi"] == scores["cremi_score"] == 0


Bad = Callable[[Path], object]


@pytest.mark.parametrize(
    ("put", "told"),
    [
        (
            lambda f: put_volume(f / "bad.zarr", grey(SHAPE), kind="image"),
            "bad.zarr is no label volume but holds image",
        ),
        (lambda f: put_volume(f / "bad.zarr", grey(SHAPE).astype(np.float32)), "labels .*bad.zarr are float32"),
        (
            lambda f: put_volume(f / "bad.zarr", grey((20, 300, 100))),
            r"both must be z, y, x and equal.*--offset_nm, where they begin",
        ),
        (
            lambda f: put_volume(f / "bad.zarr", grey((20, 300, 100)), translation_nm=(0.0, 0.0, 6.0)),
            r"lie \[0.0, 0.0, 1.5\] voxels into .*between its voxels",
        ),
        (
            lambda f: put_volume(f / "bad.zarr", grey((20, 300, 100)), translation_nm=(0.0, 0.0, 4000.0)),
            r"begin at voxel \[0, 0, 1000\] of .*they do not meet",
        ),
        (
            lambda f: put_volume(f / "bad.zarr", grey(SHAPE), voxel_size_nm=(50, 8, 8)),
            r"voxels of .* are \[50.0, 4.0, 4.0\] nm, those of its labels .* \[50.0, 8.0, 8.0\] nm",
        ),
        (lambda f: put_volume(f / "bad.zarr", np.zeros(SHAPE, np.uint8)), "has a known true segment"),
    ],
)
def test_labels_that_do_not_fit_are_refused(capsys: Capsys, home: Path, volumes: Path, put: Bad, told: str) -> None:
    put(volumes)
    words = ("evaluate", "--cells", "cells", "--labels", "bad", "--engine", "serial")
    if "known true segment" in told:  # found when all is counted
        with pytest.raises(ValueError, match=told):
            evaluate(EvaluateSettings(cells="cells", labels="bad", engine="serial"))
        return
    assert re.search(told, refusal(capsys, home, *words))


def test_a_threshold_without_a_probability_is_refused() -> None:
    with pytest.raises(ValueError, match=r"threshold=0\.5 without volume: cells have no threshold"):
        EvaluateSettings(cells="c", labels="l", threshold=0.5)
