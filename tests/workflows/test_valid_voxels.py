"""What is valid is decided voxel by voxel, kept with the output and honoured after it; skipping changes no voxel."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from bundles import make_bundle
from oracles import same_up_to_renaming, whole_labels
from terminal import refusal, tessera
from tessera.geometry.boxes import Box
from tessera.images.normalise import Normalisation
from tessera.images.quantise import dequantise, quantise
from tessera.metrics.seams import BlockSeams
from tessera.model.bundle import load_contract, save_contract
from tessera.model.predictor import load_predictor, predict_volume
from tessera.settings.evaluate import EvaluateSettings
from tessera.settings.predict import PredictSettings, parse_roi
from tessera.settings.pyramid import PyramidSettings
from tessera.settings.segment import SegmentSettings
from tessera.storage.ledger import read_rows
from tessera.storage.validity import valid_reader
from tessera.storage.volumes import create_volume, open_volume
from tessera.workflows.audit import STAGE, plan_audit, process_block
from tessera.workflows.evaluate import evaluate
from tessera.workflows.predict import KIND, predict
from tessera.workflows.pyramid import pyramid
from tessera.workflows.segment import segment
from volumes import grey, mask, put_volume

Capsys = pytest.CaptureFixture[str]
SHAPE, CHUNK, SHARD = (6, 70, 90), (2, 16, 16), (2, 32, 32)
LAYOUT = {"chunk": CHUNK, "shard": SHARD}
SERIAL = {"engine": "serial", "attempts": 1}
ROI = "1:6,7:66,5:88"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b", "valid")


def sparse_grey() -> tuple[np.ndarray, np.ndarray]:
    """Grey values of which some chunks are missing, single ones and whole shards; and where they are stored."""
    counts = tuple(-(-n // c) for n, c in zip(SHAPE, CHUNK, strict=True))
    there = np.random.default_rng(7).random(counts) < 0.6
    there[1, :2, :2] = False
    there[2, 2:4, 4:] = False
    stored = there
    for axis, extent in enumerate(CHUNK):
        stored = np.repeat(stored, extent, axis=axis)
    stored = stored[tuple(slice(0, n) for n in SHAPE)]
    voxels = grey(SHAPE)
    voxels[:, 40:, 50:] = 90  # stored, valid and flat
    return np.where(stored, voxels, 0).astype(np.uint8), stored


def put(path: Path, voxels: np.ndarray, **attributes: Any) -> Path:
    made = create_volume(
        path,
        voxels.shape,
        voxels.dtype,
        voxel_size_nm=(50, 4, 4),
        attributes={"complete": True, **attributes},
        **LAYOUT,
    )
    made.write(Box.whole(made.shape), voxels)
    return path


def put_mask(path: Path) -> np.ndarray:
    """A mask of half the resolution, as a pyramid's level would be; gives it voxel for voxel of the raw volume."""
    coarse = np.zeros((SHAPE[0], 35, 45), np.uint8)
    coarse[1:, 3:20, 4:31] = 7
    coarse[3, 25:, :] = 1
    volume = create_volume(
        path, coarse.shape, np.uint8, voxel_size_nm=(50, 8, 8), translation_nm=(0, 2, 2), attributes={"complete": True}
    )
    volume.write(Box.whole(coarse.shape), coarse)
    return np.repeat(np.repeat(coarse, 2, axis=1), 2, axis=2) > 0


def run(raw: Path, bundle: Path, output: Path, **chosen: Any) -> np.ndarray:
    settings = {**LAYOUT, **SERIAL, "tile": (1, 32, 32), **chosen}
    return open_volume(predict(PredictSettings(str(raw), str(bundle), str(output), **settings))).array[:]


def valid_of(output: Path) -> np.ndarray:
    volume = open_volume(output)
    return valid_reader(volume)(Box.whole(volume.shape))


@pytest.mark.parametrize("ome_zarr", ["0.5", "0.4"])
@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"masked": True},
        {"masked": True, "roi": ROI, "sections": "0-2,4-5"},
        {"roi": ROI, "block": (4, 64, 32), "tile": (2, 40, 24)},
    ],
    ids=["missing chunks", "a mask", "mask, sections, odd region", "large blocks"],
)
def test_skipping_or_not_gives_the_same_voxels_and_they_are_the_valid_ones(
    bundle: Path, tmp_path: Path, chosen: dict[str, Any], ome_zarr: Any
) -> None:
    chosen, (voxels, valid) = dict(chosen), sparse_grey()
    raw = put(tmp_path / "raw.zarr", voxels, invalid_sections=[3])
    valid[3] = False
    if chosen.pop("masked", False):
        valid &= put_mask(tmp_path / "mask.zarr")
        chosen["mask"] = str(tmp_path / "mask.zarr")
    layout = {} if ome_zarr == "0.5" else {"shard": None, "block": chosen.get("block", SHARD), "ome_zarr": "0.4"}
    made = {
        skip: run(raw, bundle, tmp_path / f"{skip}.zarr", skip=skip, **{**chosen, **layout}) for skip in (True, False)
    }
    np.testing.assert_array_equal(made[True], made[False])
    box = parse_roi(chosen.get("roi"), SHAPE).slices
    for skip in made:
        np.testing.assert_array_equal(valid_of(tmp_path / f"{skip}.zarr"), valid[box])
    whole = predict_volume(*_of(bundle, voxels))
    whole[~valid] = 0
    assert np.abs(made[True].astype(int) - quantise(whole[box]).astype(int)).max() <= 1
    assert len(np.unique(made[True])) > 50


def _of(bundle: Path, voxels: np.ndarray) -> tuple[Any, np.ndarray, Any]:
    network, contract = load_predictor(bundle)
    return network, voxels, contract


def test_under_per_section_levels_and_with_neighbours_skipping_changes_no_voxel(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", "valid", input_sections=3)
    save_contract(bundle, replace(load_contract(bundle), normalisation=Normalisation("per_section", 0.5, 0.6)))
    voxels, _ = sparse_grey()
    voxels[:2] = 0  # a slab of which nothing is stored: it has no levels, and needs none
    raw = put(tmp_path / "raw.zarr", voxels, invalid_sections=[4])
    chosen = {"roi": ROI, "sections": "0-3,5", "tile": (2, 24, 40)}
    on, off = (run(raw, bundle, tmp_path / f"{skip}.zarr", skip=skip, **chosen) for skip in (True, False))
    np.testing.assert_array_equal(on, off)
    assert open_volume(tmp_path / "True.zarr").invalid_sections == {0, 3}
    assert len(np.unique(on)) > 20


def test_a_mask_changes_no_probability_inside_it(bundle: Path, tmp_path: Path) -> None:
    raw = put(tmp_path / "raw.zarr", grey(SHAPE))
    inside = put_mask(tmp_path / "mask.zarr")
    without = run(raw, bundle, tmp_path / "without.zarr")
    masked = run(raw, bundle, tmp_path / "masked.zarr", mask=str(tmp_path / "mask.zarr"))
    np.testing.assert_array_equal(masked, np.where(inside, without, 0))


def test_validity_is_an_array_only_where_whole_sections_do_not_say_all(bundle: Path, tmp_path: Path) -> None:
    voxels = grey(SHAPE)
    voxels[2:4] = 0
    raw = put(tmp_path / "raw.zarr", voxels, invalid_sections=[5])
    run(raw, bundle, tmp_path / "out.zarr", sections="1-5")
    volume = open_volume(tmp_path / "out.zarr")
    assert volume.invalid_sections == {0, 2, 3, 5}
    assert "validity" not in volume.attributes and not (tmp_path / "out.zarr" / "valid").exists()
    assert valid_of(tmp_path / "out.zarr").all(axis=(1, 2)).tolist() == [False, True, False, False, True, False]


def test_a_block_without_a_valid_voxel_is_neither_read_nor_predicted_and_its_row_says_so(
    bundle: Path, tmp_path: Path
) -> None:
    raw = put(tmp_path / "raw.zarr", grey(SHAPE))
    inside = np.zeros(SHAPE, np.uint8)
    inside[2:4, 32:60, 40:64] = 1
    put_volume(tmp_path / "mask.zarr", inside)
    # What must not be read cannot be.
    shards = [path for path in (raw / "0" / "c" / "0").rglob("*") if path.is_file()]
    for shard in shards:
        shard.write_bytes(b"\0" * shard.stat().st_size)
    assert len(shards) == 9
    made = run(raw, bundle, tmp_path / "out.zarr", mask=str(tmp_path / "mask.zarr"))
    rows = {row.block: row for row in read_rows(tmp_path / "out.zarr")}
    skipped = {block for block, row in rows.items() if row.values.get("skipped")}
    assert len(rows) == 27 and {row.status for row in rows.values()} == {"done"}
    assert skipped == set(range(27)) - {13}
    written = [path for path in (tmp_path / "out.zarr").rglob("c/*/*/*") if path.is_file()]
    assert {path.parts[-5] for path in written} == {"0", "valid"} and len(written) == 2
    assert made[2:4, 32:60, 40:64].any()


def test_a_skipped_block_s_checksum_is_that_of_what_it_reads_as(bundle: Path, tmp_path: Path) -> None:
    from tessera.workflows.block_jobs import checksum

    voxels, _ = sparse_grey()
    raw = put(tmp_path / "raw.zarr", voxels)
    run(raw, bundle, tmp_path / "out.zarr", mask=str(put_volume(tmp_path / "m.zarr", _corner())))
    volume = open_volume(tmp_path / "out.zarr")
    from tessera.geometry.blocks import BlockGrid

    grid = BlockGrid(SHAPE, SHARD)
    rows = {row.block: row for row in read_rows(tmp_path / "out.zarr")}
    assert {row.values.get("skipped", False) for row in rows.values()} == {True, False}
    for block, row in rows.items():
        assert row.checksum == checksum(volume.read(grid.box(block))), grid.box(block)


def test_the_audit_reads_no_block_that_was_skipped_for_it_has_no_face_to_score(bundle: Path, tmp_path: Path) -> None:
    raw = put(tmp_path / "raw.zarr", grey(SHAPE))
    out = tmp_path / "out.zarr"
    run(raw, bundle, out, mask=str(put_volume(tmp_path / "m.zarr", _corner())))
    rows = {row.block: row.values for row in read_rows(out, stage=STAGE)}
    skipped = {row.block for row in read_rows(out) if row.values.get("skipped")}
    assert len(rows) == 27 and 0 < len(skipped) < 27
    assert {block for block, values in rows.items() if values.get("skipped")} == skipped
    plan, volume = plan_audit(open_volume(out)), open_volume(out)
    for block in skipped:
        detail = process_block(plan, volume, valid_reader(volume), (plan.grid.box(block), ((), (), ())))["detail"]
        found = BlockSeams.from_plain(detail)
        assert not any(face.runs for face in found.faces) and not any(found.sections.counts)
        assert not any(sums.runs for sums in found.references.values())


def _corner() -> np.ndarray:
    corner = np.zeros(SHAPE, np.uint8)
    corner[4:, 50:, :70] = 1
    return corner


def test_ray_workers_skip_what_the_serial_run_does(ray_session: None, bundle: Path, tmp_path: Path) -> None:
    voxels, _ = sparse_grey()
    raw = put(tmp_path / "raw.zarr", voxels)
    mask_path = str(put_volume(tmp_path / "m.zarr", _corner()))
    serial = run(raw, bundle, tmp_path / "serial.zarr", mask=mask_path)
    on_ray = run(raw, bundle, tmp_path / "ray.zarr", mask=mask_path, engine="ray", workers=1)
    np.testing.assert_array_equal(on_ray, serial)
    np.testing.assert_array_equal(valid_of(tmp_path / "ray.zarr"), valid_of(tmp_path / "serial.zarr"))
    rows = [
        [row.values.get("skipped", False) for row in sorted(read_rows(tmp_path / name), key=lambda r: r.block)]
        for name in ("serial.zarr", "ray.zarr")
    ]
    assert rows[0] == rows[1] and 0 < sum(rows[0]) < 27


def test_another_mask_or_selection_is_another_job_and_skipping_is_not(
    bundle: Path, tmp_path: Path, home: Path, capsys: Capsys
) -> None:
    put(home / "volumes" / "raw.zarr", grey(SHAPE))
    put_volume(home / "volumes" / "m.zarr", _corner())
    words = ("predict", "--volume", "raw", "--model", bundle, "--output", "out", "--engine", "serial")
    assert tessera(capsys, *words, "--mask", "m", "--sections", "0-5").code == 0
    rows = len(list(read_rows(home / "volumes" / "out.zarr")))
    assert tessera(capsys, *words, "--mask", "m", "--sections", "0-5", "--skip", "false").code == 0
    assert len(list(read_rows(home / "volumes" / "out.zarr"))) == rows, "every block was done"
    told = tessera(capsys, *words, "--mask", "m", "--sections", "1-5").err
    assert "belongs to another job: sections was 0-5, now 1-5" in told
    assert "belongs to another job: mask was " in tessera(capsys, *words, "--sections", "0-5").err
    put_volume(home / "volumes" / "m2.zarr", _corner())
    told = tessera(capsys, *words, "--mask", "m2", "--sections", "0-5").err
    assert "mask.identity was " in told and "mask.path was " in told
    job = json.loads((home / "volumes" / "out.zarr.ledger" / "job.json").read_text())
    assert "skip" not in job["description"]


def test_a_chunk_that_appears_later_makes_it_another_job(bundle: Path, tmp_path: Path) -> None:
    voxels, stored = sparse_grey()
    raw = put(tmp_path / "raw.zarr", voxels)
    run(raw, bundle, tmp_path / "out.zarr")
    open_volume(raw, writable=True).write(Box.whole(SHAPE), np.where(stored, voxels, 5).astype(np.uint8))
    with pytest.raises(ValueError, match=r"belongs to another job: .*stored_chunks was \w+, now absent"):
        run(raw, bundle, tmp_path / "out.zarr")


# What follows


@pytest.fixture
def predicted(home: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """Membrane probability of which a part was not predicted; its voxels, and which are valid."""
    voxels = np.where(mask(SHAPE) == 0, 230, 20).astype(np.uint8) + grey(SHAPE, 5) % 20
    valid = _corner() > 0
    valid[1:3, :40, :50] = True
    voxels[~valid] = 0
    path = home / "volumes" / "p.zarr"
    put_volume(path, voxels, kind=KIND, threshold=0.5, validity={"path": "valid"}, invalid_sections=[0, 3])
    from tessera.storage.validity import add_validity, open_validity

    volume = open_volume(path, writable=True)
    add_validity(volume)
    kept = open_validity(volume, writable=True)
    assert kept is not None
    kept.write(Box.whole(SHAPE), valid.astype(np.uint8))
    return path, voxels, valid


def test_labels_are_0_where_nothing_was_predicted(
    predicted: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    path, voxels, valid = predicted
    out = segment(SegmentSettings(str(path), str(tmp_path / "cells.zarr"), engine="serial", **LAYOUT))
    labels = open_volume(out).array[:]
    expected, _ = whole_labels((1 - dequantise(voxels) > 0.5) & valid, "section-4")
    assert same_up_to_renaming(labels, expected)
    assert (labels[~valid] == 0).all() and labels.max() > 20


def test_scores_are_those_of_the_predicted_pixels_alone(
    predicted: tuple[Path, np.ndarray, np.ndarray], home: Path
) -> None:
    _, voxels, valid = predicted
    truth = mask(SHAPE)
    put_volume(home / "volumes" / "truth.zarr", truth, kind="labels")
    scores = evaluate(EvaluateSettings("p", "truth"))
    assert scores["sections"] == [1, 2, 4, 5]
    # The oracle: the same probability where all is valid, and the truth unknown instead.
    put_volume(home / "volumes" / "q.zarr", voxels, kind=KIND, threshold=0.5, invalid_sections=[0, 3])
    put_volume(home / "volumes" / "known.zarr", np.where(valid, truth, 7).astype(np.uint8), kind="labels")
    expected = evaluate(EvaluateSettings("q", "known", unknown_label=7))
    assert scores["frozen_threshold"] == expected["frozen_threshold"]
    assert scores["maximum_over_thresholds"] == expected["maximum_over_thresholds"]
    everywhere = evaluate(EvaluateSettings("q", "truth"))
    assert everywhere["frozen_threshold"] != scores["frozen_threshold"]


def test_a_pyramid_made_anew_keeps_the_validity_mask(predicted: tuple[Path, np.ndarray, np.ndarray]) -> None:
    path, _, valid = predicted
    for _ in range(2):
        pyramid(PyramidSettings(volume=str(path), levels=1, engine="serial", overwrite=True))
    assert len(open_volume(path).levels) == 2
    np.testing.assert_array_equal(zarr.open_array(path / "valid")[:], valid)


# What does not fit


@pytest.fixture
def refused(capsys: Capsys, home: Path, bundle: Path) -> Any:
    put(home / "volumes" / "raw.zarr", sparse_grey()[0], invalid_sections=[3])

    def told(*words: object) -> str:
        command = ("predict", "--volume", "raw", "--model", bundle, "--output", "out", "--engine", "serial")
        return refusal(capsys, home, *command, *words)

    return told


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--sections", "0-6"), "passes the volume, which has 6 sections, 0-5. Try '0-5'."),
        (("--sections", "a-b"), "is not a selection: 'a-b' is no number or range. Try '0-19' or '3,5'."),
        (("--sections", "3"), "sections='3' selects none that is valid among 0 to 5 of the region"),
        (("--sections", "4-5", "--roi", "0:3,0:70,0:90"), "selects none that is valid among 0 to 2 of the region"),
        (("--mask", "gone"), "gone does not exist: looked for "),
    ],
)
def test_selections_that_leave_nothing_are_refused(refused: Any, words: tuple[str, ...], expected: str) -> None:
    assert expected in refused(*words)


def test_a_mask_that_does_not_fit_names_both_sides_and_the_fix(refused: Any, home: Path) -> None:
    folder = home / "volumes"
    put_volume(folder / "floats.zarr", np.ones(SHAPE, np.float32))
    assert "holds float32 of shape (6, 70, 90): a mask says yes or no at each z, y, x. Save one channel of it as" in (
        refused("--mask", "floats")
    )
    put_volume(folder / "two.zarr", np.ones((2, *SHAPE), np.uint8))
    assert "holds uint8 of shape (2, 6, 70, 90): a mask says yes or no" in refused("--mask", "two")
    put_volume(folder / "small.zarr", np.ones((6, 35, 45), np.uint8))
    told = refused("--mask", "small")
    assert "small.zarr does not cover the volume" in told
    assert "on y it reaches from -2 to 138 nm, where the volume reaches from -2 to 278 nm" in told
    assert "Crop or pad it to the volume's extent, or write its true scale and translation" in told
    put_volume(folder / "large.zarr", np.ones((6, 140, 180), np.uint8))
    assert "on y it reaches from -2 to 558 nm" in refused("--mask", "large")
    zarr.create_array(folder / "plain.zarr", shape=(6, 35, 45), dtype="uint8", chunks=(6, 35, 45))[:] = 1
    told = refused("--mask", "plain")
    assert "has shape (6, 35, 45), the volume (6, 70, 90)" in told and "plain.zarr does not say its voxel size" in told
    assert told.endswith("Save the mask as OME-Zarr with its scale and translation, or with the volume's shape.")


def test_a_mask_that_leaves_nothing_is_refused(refused: Any, home: Path) -> None:
    folder = home / "volumes"
    put_volume(folder / "empty.zarr", np.zeros(SHAPE, np.uint8))
    assert "empty.zarr stores no voxel that is not 0: nothing would be predicted." in refused("--mask", "empty")
    elsewhere = (sparse_grey()[0] == 0).astype(np.uint8)
    elsewhere[3] = 1
    put_volume(folder / "elsewhere.zarr", elsewhere)
    told = refused("--mask", "elsewhere")
    assert "no voxel of [0:6, 0:70, 0:90] of " in told and "where the mask " in told
    assert told.endswith("Give another region, other sections or another mask.")
    put_volume(folder / "half.zarr", np.ones(SHAPE, np.uint8), complete=False)
    assert "half.zarr is only half-written" in refused("--mask", "half")
    assert refused("--mask", "out", "--overwrite", "true").startswith("out does not exist")
    put_volume(folder / "out.zarr", np.ones(SHAPE, np.uint8))
    assert refused("--mask", "out", "--overwrite", "true").startswith("output=out is the input itself ")


def test_a_region_of_which_nothing_is_stored_is_refused(capsys: Capsys, home: Path, bundle: Path) -> None:
    create_volume(
        home / "volumes" / "raw.zarr", SHAPE, np.uint8, voxel_size_nm=(50, 4, 4), attributes={"complete": True}
    )
    told = refusal(
        capsys, home, "predict", "--volume", "raw", "--model", bundle, "--output", "out", "--engine", "serial"
    )
    assert "stores no chunk of [0:6, 0:70, 0:90]: every voxel would read as zero, and come out invalid." in told
