"""What looks alike but is not: nothing is written over, resumed on or scored against the wrong one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from terminal import refusal, tessera
from tessera.geometry.boxes import Box
from tessera.images.augment import Augmentation
from tessera.images.phantom import Phantom
from tessera.images.phantom_options import PhantomOptions
from tessera.settings.common import RunnerSettings
from tessera.settings.train import AnnotatedSections, DataSettings
from tessera.storage.ledger import ledger_path
from tessera.storage.removal import remove_output
from tessera.storage.volumes import open_volume
from tessera.workflows.annotated import load_annotated
from tessera.workflows.synthetic import synthetic_volumes
from tessera.workflows.training_plan import check_turns
from volumes import grey, mask, put_volume

Capsys = pytest.CaptureFixture[str]
SHAPE = (4, 32, 32)
SERIAL = ("--engine", "serial", "--voxel_size_nm", "[50,4,4]")


def _tiff(path: Path, stack: np.ndarray) -> Path:
    tifffile.imwrite(path, stack, photometric="minisblack")
    return path


def _slices(folder: Path, stack: np.ndarray, numbers: list[int]) -> Path:
    folder.mkdir(exist_ok=True)
    for number, section in zip(numbers, stack, strict=True):
        tifffile.imwrite(folder / f"s{number}.tif", section, photometric="minisblack")
    return folder


def _swap(folder: Path) -> None:
    """Let slices 1 and 2 change their names; sizes and dates stay."""
    (folder / "s1.tif").rename(folder / "x")
    (folder / "s2.tif").rename(folder / "s1.tif")
    (folder / "x").rename(folder / "s2.tif")


def test_a_volume_that_something_else_made_is_not_ingested_into(home: Path, tmp_path: Path, capsys: Capsys) -> None:
    put_volume(home / "volumes" / "truth.zarr", mask(SHAPE), made_by="phantom", kind="labels")
    source = _tiff(tmp_path / "a.tif", grey(SHAPE))
    told = refusal(capsys, home, "ingest", "--source", source, "--output", "truth", *SERIAL)
    assert "with made_by phantom, not ingest: it would be overwritten" in told


def test_a_finished_volume_without_its_ledger_is_not_written_over(home: Path, tmp_path: Path, capsys: Capsys) -> None:
    words = ("--output", "kept", *SERIAL)
    assert tessera(capsys, "ingest", "--source", _tiff(tmp_path / "a.tif", grey(SHAPE)), *words).code == 0
    kept = home / "volumes" / "kept.zarr"
    ledger_path(kept).rename(tmp_path / "moved")
    other = _tiff(tmp_path / "b.tif", grey(SHAPE, seed=9))
    told = refusal(capsys, home, "ingest", "--source", other, *words)
    assert "is a finished volume without its ledger" in told
    assert (open_volume(kept).array[:] == grey(SHAPE)).all()


def test_slices_that_changed_places_are_another_source(home: Path, tmp_path: Path, capsys: Capsys) -> None:
    folder = _slices(tmp_path / "s", grey(SHAPE), [0, 1, 2, 3])
    words = ("ingest", "--source", folder, "--output", "v", *SERIAL)
    assert tessera(capsys, *words).code == 0
    _swap(folder)
    assert "belongs to another job: source.files was" in refusal(capsys, home, *words)
    (folder / "notes.txt").write_text("what else lies in the folder does not matter")
    _swap(folder)
    assert tessera(capsys, *words).code == 0


def test_a_gap_in_the_labels_is_not_learned_as_membrane(home: Path, tmp_path: Path, capsys: Capsys) -> None:
    folder = _slices(tmp_path / "labels", mask((4, 32, 32)), [0, 1, 2, 4])
    assert tessera(capsys, "ingest", "--source", folder, "--output", "l", "--kind", "labels", *SERIAL).code == 0
    labels = home / "volumes" / "l.zarr"
    assert open_volume(labels).invalid_sections == {3}
    raw = put_volume(home / "volumes" / "r.zarr", grey((5, 32, 32)))
    part = AnnotatedSections(str(raw), str(labels), "0-4")
    with pytest.raises(ValueError, match=r"sections \[3\] .* are missing or blank: leave them out"):
        load_annotated([part], DataSettings([part], [part]))
    kept = AnnotatedSections(str(raw), str(labels), "0-2,4")
    assert len(load_annotated([kept], DataSettings([kept], [kept])).raw) == 4


def test_a_section_nobody_annotated_is_named(home: Path) -> None:
    labels = mask((3, 32, 32))
    labels[1] = 0
    raw, drawn = put_volume(home / "r.zarr", grey((3, 32, 32))), put_volume(home / "l.zarr", labels)
    part = AnnotatedSections(str(raw), str(drawn))
    with pytest.raises(ValueError, match=r"hold only membrane in 1 of the chosen sections \(the first is number 1"):
        load_annotated([part], DataSettings([part], [part]))


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_grey_values_are_not_taken_for_labels(home: Path, capsys: Capsys, command: str) -> None:
    volumes = home / "volumes"
    put_volume(volumes / "r.zarr", grey(SHAPE), kind="image", made_by="ingest")
    put_volume(volumes / "p.zarr", grey(SHAPE), kind="membrane probability", threshold=0.5)
    item = '[{"volume": "r", "labels": "r", "sections": "%s"}]'
    words = {
        "train": ("--data.train", item % "0-1", "--data.validation", item % "2-3", "--data.labels_are", "instances"),
        "evaluate": ("--volume", "p", "--labels", "r"),
    }
    assert "is no label volume but holds image" in refusal(capsys, home, command, *words[command])


def test_overwriting_waits_until_the_run_can_be_tracked(home: Path, capsys: Capsys) -> None:
    put_volume(home / "volumes" / "p.zarr", 2 * (mask(SHAPE) // 2), kind="membrane probability", threshold=0.5)
    words = ("segment", "--volume", "p", "--output", "c", "--engine", "serial")
    assert tessera(capsys, *words).code == 0
    told = refusal(capsys, home, *words, "--overwrite", "true", "--tracking.uri", "foo://x")
    assert "tracking.uri=foo://x cannot be used" in told


def test_a_refused_job_leaves_the_earlier_run_as_it_was(home: Path, capsys: Capsys) -> None:
    from mlflow import MlflowClient

    from tessera.tracking.runs import tracking_uri

    put_volume(home / "volumes" / "p.zarr", 2 * (mask(SHAPE) // 2), kind="membrane probability", threshold=0.5)
    words = ("segment", "--volume", "p", "--output", "c", "--engine", "serial")
    assert tessera(capsys, *words).code == 0
    run = open_volume(home / "volumes" / "c.zarr").attributes["run_id"]
    answer = tessera(capsys, *words, "--threshold", "0.3")
    assert (answer.code, "threshold was 0.5, now 0.3" in answer.err) == (2, True), answer.err
    stored = MlflowClient(tracking_uri(None, home)).get_run(run)
    assert stored.info.status == "FINISHED"
    assert "tessera.error" not in stored.data.tags


def test_nan_is_found_before_blocks_run(home: Path, tmp_path: Path, capsys: Capsys) -> None:
    from bundles import make_bundle

    voxels = grey(SHAPE).astype(np.float32)
    voxels[2, 16, 16] = np.nan
    put_volume(home / "volumes" / "f.zarr", voxels)
    words = ("--volume", "f", "--output", "o", "--accept_mismatch", "true", "--engine", "serial")
    told = tessera(capsys, "predict", "--model", make_bundle(tmp_path / "b"), *words)
    assert told.code == 2
    assert "holds NaN or infinite values in [2:3" in told.err
    assert not (home / "volumes" / "o.zarr").exists()


def test_a_synthetic_volume_with_a_part_gone_is_made_whole_again() -> None:
    shape, serial = (2, 64, 64), RunnerSettings(engine="serial")
    volumes = synthetic_volumes(shape, 5, serial)
    remove_output(volumes.instances)
    again = synthetic_volumes(shape, 5, serial)
    expected = Phantom(5).block(Box.whole(shape))
    np.testing.assert_array_equal(open_volume(again.instances).array[:], expected.instances)
    np.testing.assert_array_equal(open_volume(again.raw).array[:], expected.raw)


def test_turns_are_refused_where_pixels_are_not_square() -> None:
    turning = Augmentation(rotation_degrees=90.0)
    with pytest.raises(ValueError, match="y != x voxel sizes"):
        check_turns(turning, (50.0, 4.0, 8.0))
    check_turns(turning, (50.0, 4.0, 4.0))
    check_turns(replace(turning, rotation_degrees=0.0, flips=True), (50.0, 4.0, 8.0))


def test_a_harder_phantom_is_another_volume_and_says_what_it_hides() -> None:
    shape, serial, damaged = (2, 330, 330), RunnerSettings(engine="serial"), PhantomOptions(tears=1.0)
    plain, torn = synthetic_volumes(shape, 5, serial), synthetic_volumes(shape, 5, serial, damaged)
    assert plain.unknown is None
    assert not {plain.raw, plain.labels, plain.instances} & {torn.raw, torn.labels, torn.instances}
    expected = Phantom(5, damaged).block(Box.whole(shape))
    assert torn.unknown is not None
    np.testing.assert_array_equal(open_volume(torn.unknown).array[:] == 255, expected.unknown)
    np.testing.assert_array_equal(open_volume(torn.raw).array[:], expected.raw)
    assert (open_volume(plain.raw).array[:] != expected.raw).any()
